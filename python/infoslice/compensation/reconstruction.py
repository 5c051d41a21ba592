"""Refit a layer from batches of what it reads and what it is to give, up to the ReLU behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from infoslice.compensation.refit import refit_
from infoslice.statistics import Moments, measure

__all__ = ["reconstruct_"]

ROUNDS = 3  # six change no accuracy beyond what another sample of inputs does


@torch.no_grad()
def reconstruct_(
    layer: nn.Module,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    kept: Tensor,
    *,
    norm: _BatchNorm | None = None,
    others: Sequence[tuple[Tensor, Tensor]] | None = None,
    rectified: bool = False,
    weights: Sequence[Tensor | None] | None = None,
    ridge: float = 1e-2,
) -> None:
    """Refit ``layer`` to give, with what is added to it, what the original gives.

    Where a ReLU alone reads the result, whatever is negative there is as good as zero. The least
    squares are then repeated with targets let go wherever both the original and the last fit are
    negative. Each repetition lowers the error, counted only where one of the two is positive, the
    pull of the ridge apart (Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks",
    arXiv 1505.06798, treat the ReLU in a like manner for weights of low rank).

    Args:
        layer: changed in place, see :func:`infoslice.compensation.refit_`.
        inputs: batches of what it reads in the pruned network.
        outputs: of what it gives in the original one.
        kept: int64 variables of its input that stay.
        norm: the batch norm that alone reads the layer's output, if there is one; its running mean
            is changed if the layer has no bias.
        others: batches of what is added to the (normed) output in the original network and in the
            pruned one; what the latter lacks is made up for.
        rectified: whether a ReLU alone reads the result.
        weights: of the samples or positions of every batch, see
            :func:`infoslice.statistics.measure`.
        ridge: > 0.

    Raises:
        ValueError: ``ridge`` is not positive.
    """
    added = others or [(outputs[0].new_zeros(()),) * 2] * len(outputs)
    start = [tensor.clone() for tensor in _fitted(layer, norm)]
    back = 1 if norm is None else _inverse_gain(norm).view(-1, *[1] * (outputs[0].dim() - 2))
    original, wanted = [], [there - here for there, here in added]  # beyond the original's output
    if rectified:
        original = [_normed(norm, y) + there for y, (there, _) in zip(outputs, added, strict=True)]
    for again in range(1 + ROUNDS * rectified):
        if again:
            wanted = [
                torch.where(z > 0, z, (_normed(norm, layer(x)) + here).clamp_max(0))
                - z
                + there
                - here
                for x, z, (there, here) in zip(inputs, original, added, strict=True)
            ]
            for tensor, old in zip(_fitted(layer, norm), start, strict=True):
                tensor.copy_(old)
        total: Moments | None = None
        each = weights or [None] * len(inputs)
        for x, y, more, w in zip(inputs, outputs, wanted, each, strict=True):
            found = measure(layer, x, y + more * back, weights=w, output_covariance=False)
            total = found if total is None else total.merge(found)
        assert total is not None  # there is at least one batch
        refit_(layer, total, kept, norm=norm, ridge=ridge)


def _fitted(layer: nn.Module, norm: _BatchNorm | None) -> list[Tensor]:
    """What :func:`infoslice.compensation.refit_` changes."""
    mean = None if norm is None else norm.running_mean
    tensors = (layer.weight, layer.bias, mean)
    return [cast(Tensor, tensor) for tensor in tensors if tensor is not None]


def _normed(norm: _BatchNorm | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    mean, variance = norm.running_mean, norm.running_var
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)


def _inverse_gain(norm: _BatchNorm) -> Tensor:
    """``[C]``: what a unit of the norm's output is at its input; 0 where nothing comes through."""
    spread = cast(Tensor, norm.running_var).add(norm.eps).sqrt()
    if not norm.affine:
        return spread
    gain = norm.weight.detach() / spread
    return torch.where(gain != 0, gain.reciprocal(), 0)
