"""Moments of many layers at once, streamed over the forwards of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics.measuring import measure
from infoslice.statistics.moments import Moments

__all__ = ["Stream", "collect"]

Stream = Callable[[Tensor], Tensor]


def collect(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str],
    *,
    batch_size: int = 64,
    outputs: Mapping[str, Stream] | None = None,
    fresh_noise: Stream | None = None,
) -> dict[str, Moments]:
    """Run ``model`` in eval mode and measure ``layers``; memory is bounded by one batch.

    Args:
        model: nothing of it changes.
        inputs: what is put in.
        layers: module paths, each :func:`supported`. Layers called several times are pooled.
        batch_size: samples per forward.
        outputs: layers whose output is measured too, each with the function applied to it first
            (the activation; ``torch.nn.Identity()`` for the plain output).
        fresh_noise: replaces the input of each layer, to perturb every layer by itself.

    Raises:
        ValueError: a layer was never called, or an activation is NaN or infinite.
    """
    outputs = outputs or {}
    found: dict[str, Moments] = {}
    names = list(dict.fromkeys(layers))

    def hook_of(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            x = args[0]
            if fresh_noise is not None:
                x = fresh_noise(x)
                y = cast(Tensor, layer.forward(x))
            of = outputs.get(name)
            moments = measure(layer, x, None if of is None else of(y))
            found[name] = found[name].merge(moments) if name in found else moments

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        with evaluating(model), torch.no_grad():
            for batch in inputs.batches(batch_size):
                model(*batch.args, **batch.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"collect: argument layers: expected layers that are called, got {missing}"
        )
    return found
