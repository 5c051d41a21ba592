"""Compensation from the statistics of the original network alone: no forward of the pruned one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infoslice.statistics import Moments, weight_matrix

__all__ = ["fold_mean_", "linear_moments"]


def linear_moments(layer: nn.Module, moments: Moments) -> Moments:
    """With the moments of the layer's own output ``W X + b``, which follow from those of X.

    Given to :func:`infoslice.compensation.refit_` they make the one-shot refit
    ``W_new = W Sx[:, S] Sx[S, S]^-1`` with bias ``W_P (E[X_P] - Sx[P, S] Sx[S, S]^-1 E[X_S])``:
    what is kept is the affine regression of the layer's output on the inputs that are left, exact
    where these determine the others.
    """
    weight = weight_matrix(layer).to(moments.scatter_x)
    mean = weight @ moments.mean_x
    bias = cast("Tensor | None", layer.bias)
    if bias is not None:
        mean = mean + bias.detach().to(mean)
    cross = moments.scatter_x @ weight.T
    return Moments(moments.count, moments.mean_x, mean, moments.scatter_x, cross, weight @ cross)


@torch.no_grad()
def fold_mean_(
    layer: nn.Module,
    weight: Tensor,
    mean: Tensor,
    removed: Tensor,
    *,
    norm: _BatchNorm | None = None,
) -> bool:
    """Replace the removed variables by their means: ``bias += W_P E[X_P]``.

    Source: FLAP, An et al. 2024, arXiv 2312.11983.

    Args:
        layer: its bias is changed in place; its weights are not.
        weight: the layer as a matrix before anything was removed, ``[m, d]``.
        mean: of what the layer reads, ``[d]``.
        removed: int64, the variables P.
        norm: the batch norm that alone reads the layer's output, if there is one; its running mean
            takes what a layer without bias cannot.

    Returns:
        Whether there was a place for it; if not, nothing was changed.
    """
    bias = cast("Tensor | None", layer.bias)
    if bias is None and norm is None:
        return False
    shift = weight[:, removed] @ mean[removed].to(weight)
    if bias is not None:
        bias.add_(shift.to(bias))
    else:
        running_mean = cast(Tensor, cast(_BatchNorm, norm).running_mean)
        running_mean.sub_(shift.to(running_mean))
    return True
