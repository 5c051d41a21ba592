"""The perturbations by name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from infoslice.perturbation.inputs import Inputs
from infoslice.perturbation.match import match, recorded_layers
from infoslice.perturbation.noise import noise
from infoslice.perturbation.tokens import (
    generated_tokens,
    predicts_next_token,
    reads_tokens,
    uniform_tokens,
)

__all__ = ["Perturbation", "perturb", "resolve"]

Perturbation = Literal["auto", "matched", "gaussian", "uniform", "tokens", "generated"]


def resolve(model: nn.Module, example_inputs: Any, perturbation: Perturbation) -> Perturbation:
    """What ``"auto"`` stands for; any other name is itself.

    ``"generated"`` if the model predicts the next of the tokens that it reads, ``"tokens"`` if it
    reads tokens and does not; else ``"matched"`` if it holds running statistics, else
    ``"gaussian"``. A model with integer inputs is run on the example to find out.
    """
    if perturbation != "auto":
        return perturbation
    if reads_tokens(model, example_inputs):
        return "generated" if predicts_next_token(model, example_inputs) else "tokens"
    return "matched" if recorded_layers(model) else "gaussian"


def perturb(
    model: nn.Module,
    example_inputs: Any,
    perturbation: Perturbation = "auto",
    *,
    samples: int = 256,
    match_steps: int = 150,
    batch_size: int = 64,
    seed: int = 0,
    show_progress: bool = True,
) -> Inputs:
    """Inputs of ``model`` made without data, ``samples`` of the shape of the example.

    Args:
        model: nothing of it changes.
        example_inputs: a tensor ``[N, ...]``, a tuple or list of arguments, or a dict of keyword
            arguments.
        perturbation: ``"gaussian"`` or ``"uniform"``: :func:`infoslice.perturbation.noise`;
            ``"matched"``: :func:`infoslice.perturbation.match` from Gaussian noise; ``"tokens"``:
            :func:`infoslice.perturbation.uniform_tokens`; ``"generated"``:
            :func:`infoslice.perturbation.generated_tokens`; ``"auto"``: see :func:`resolve`.
        samples: how many, >= 2.
        match_steps: of the fit.
        batch_size: samples per forward.
        seed: equal seeds give equal inputs.
        show_progress: bars on standard error, if that is a terminal.

    Raises:
        ValueError: an unknown name, or as the function of that name.
        TypeError: as the function of that name.
    """
    if perturbation not in get_args(Perturbation):
        raise ValueError(
            f"perturb: argument perturbation: expected one of {get_args(Perturbation)}, got "
            f"{perturbation!r}"
        )
    chosen = resolve(model, example_inputs, perturbation)
    if chosen == "generated":
        return generated_tokens(
            model, example_inputs, samples, batch_size=batch_size, seed=seed,
            show_progress=show_progress,
        )  # fmt: skip
    if chosen == "tokens":
        return uniform_tokens(model, example_inputs, samples, seed=seed)
    if chosen == "uniform":
        return noise(example_inputs, samples, kind="uniform", seed=seed)
    start = noise(example_inputs, samples, seed=seed)
    if chosen == "gaussian":
        return start
    return match(
        model, start, steps=match_steps, batch_size=batch_size, show_progress=show_progress
    )
