"""Filters near the geometric median of their layer go first: the others can stand in for them.

He, Liu, Wang, Hu and Yang 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural
Networks Acceleration", CVPR, arXiv 1811.00250.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["fpgm", "squared_distances"]


def fpgm(
    statistics: GroupStatistics, weights: Sequence[Tensor], *, norm_ratio: float = 0.0
) -> Tensor:
    """``sum_j |w_c - w_j|`` over all filters j of the layer, float64 ``[C]``; no unit.

    A filter is all the weights that write the channel; where several layers write it they are
    joined, as in :func:`infoslice.criteria.l2_norm`. Biases and batch norms do not count, as in
    the released code. Not comparable between layers: meant for uniform allocation. Reads weights
    only. O(C^2 k) for filters of k weights.

    Args:
        statistics: of the group.
        weights: ``[C, ...]`` for every layer that writes it.
        norm_ratio: in [0, 1): this share of the filters, rounded down, goes first by its L2 norm
            and takes no part in the distances of the rest, as in the paper's mixed criterion (the
            released code rounds the number that *survives* down instead). The scores of these
            are at most 0: their norm less the smallest norm of the rest.

    Raises:
        ValueError: ``norm_ratio`` out of range.
    """
    if not 0 <= norm_ratio < 1:
        raise ValueError(
            f"fpgm: argument norm_ratio: expected a number in [0, 1), got {norm_ratio}"
        )
    rows = [w.double().flatten(1) for w in weights]
    channels = statistics.channels
    norms = sum((w.square().sum(1) for w in rows), start=torch.zeros(channels).to(rows[0])).sqrt()
    by_norm = norms.sort(stable=True).indices
    first = math.floor(norm_ratio * channels + 1e-9)
    small, rest = by_norm[:first], by_norm[first:]
    scores = norms - norms[rest[0]]
    scores[rest] = squared_distances([w[rest] for w in rows]).sqrt().sum(1)
    scores[small] = scores[small].clamp_max(0.0)  # equal norms, not rounding
    return scores


def squared_distances(rows: Sequence[Tensor]) -> Tensor:
    """``sum |x_i - x_j|^2`` over all tensors ``[C, k]``, float64 ``[C, C]``, 0 on the diagonal.

    From products, relative to the mean row, so that the error is that of the spread of the rows.
    """
    total = rows[0].new_zeros(len(rows[0]), len(rows[0]), dtype=torch.float64)
    for x in rows:
        centred = x.to(total) - x.to(total).mean(0)
        gram = centred @ centred.T
        square = gram.diagonal()
        total += square[:, None] + square - 2 * gram
    total = total.clamp_min_(0)  # rounding may leave a little below
    return total.fill_diagonal_(0)
