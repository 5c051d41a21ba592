"""Maximum-entropy noise: Gaussian at a given variance, uniform on a given range."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from infoslice.perturbation.inputs import Inputs

__all__ = ["Kind", "noise"]

Kind = Literal["gaussian", "uniform"]


def noise(example_inputs: Any, samples: int, *, kind: Kind = "gaussian", seed: int = 0) -> Inputs:
    """Independent noise of mean 0 and variance 1 in the shape of the example inputs.

    Args:
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments; its
            floating-point tensors ``[N, ...]`` give shape, dtype and device.
        samples: how many, >= 2; takes the place of N.
        kind: ``"gaussian"``, or ``"uniform"`` on [-sqrt 3, sqrt 3].
        seed: equal seeds give equal noise on every device.

    Raises:
        ValueError: fewer than two samples, an unknown kind.
        TypeError: a tensor that is not floating point (tokens, masks): noise has no meaning there.
    """
    if samples < 2:
        raise ValueError(f"noise: argument samples: expected at least 2, got {samples}")
    if kind not in ("gaussian", "uniform"):
        raise ValueError(f"noise: argument kind: expected 'gaussian' or 'uniform', got {kind!r}")
    generator = torch.Generator().manual_seed(seed)

    def draw(example: Tensor) -> Tensor:
        if not example.is_floating_point() or example.dim() == 0:
            raise TypeError(
                f"noise: argument example_inputs: expected floating-point tensors [N, ...], got "
                f"{example.dtype} {tuple(example.shape)}; models that read tokens take "
                f"uniform_tokens or generated_tokens, others real inputs as data"
            )
        shape = (samples, *example.shape[1:])
        if kind == "gaussian":
            values = torch.randn(shape, generator=generator)
        else:
            values = (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(3)
        return values.to(example.device, example.dtype)

    return Inputs.of(example_inputs).map(draw)
