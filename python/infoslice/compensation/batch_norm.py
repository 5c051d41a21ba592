"""Batch-norm statistics of the smaller network, taken anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["restate_"]


@torch.no_grad()
def restate_(
    norm: _BatchNorm, inputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None
) -> None:
    """Set the running statistics to the mean and variance (divided by n) of what the layer reads.

    Args:
        norm: changed in place; must hold running statistics.
        inputs: batches ``[N, C, ...]`` of what it reads. A channel that the batches show constant
            keeps its recorded variance: nothing is known of its scale.
        weights: of the samples of every batch, ``[N]``, or of their positions, ``[N, ...]``.

    Raises:
        ValueError: weights of another shape, or all of them 0.
    """
    count, mean, scatter = 0.0, torch.zeros(()), torch.zeros(())
    for x, given in zip(inputs, weights or [None] * len(inputs), strict=True):
        flat = x.movedim(1, 0).flatten(1).double()
        w = _of_values(x, given)
        n = float(w.sum())
        if n == 0:
            continue
        own = flat @ w / n
        spread = (flat - own[:, None]).square() @ w
        if count == 0:
            count, mean, scatter = n, own, spread
            continue
        delta = own - mean
        scatter = scatter + spread + delta.square() * (count * n / (count + n))
        mean, count = mean + delta * (n / (count + n)), count + n
    if count == 0:
        raise ValueError("restate_: argument weights: expected some above 0, got none")
    variance = scatter / count
    running_mean = cast(Tensor, norm.running_mean)
    running_var = cast(Tensor, norm.running_var)
    running_mean.copy_(mean)
    running_var.copy_(torch.where(variance > 0, variance, running_var.to(variance)))


def _of_values(x: Tensor, weights: Tensor | None) -> Tensor:
    """One for each sample and position of ``x [N, C, ...]``, flat float64."""
    shape = x[:, 0].shape
    if weights is None:
        return x.new_ones(shape, dtype=torch.float64).flatten()
    if weights.shape != shape[: weights.dim()]:
        raise ValueError(
            f"restate_: argument weights: expected one for each entry of the first dimensions of "
            f"{tuple(shape)}, got {tuple(weights.shape)}"
        )
    w = weights.to(x.device, torch.float64)
    return w.view(*w.shape, *[1] * (len(shape) - w.dim())).expand(shape).flatten()
