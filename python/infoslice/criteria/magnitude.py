"""Filters with small weights go first.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["l1_norm", "l2_norm"]


def l1_norm(statistics: GroupStatistics, weights: Sequence[Tensor]) -> Tensor:
    """``sum |w|`` over all the weights that write a channel, float64 ``[C]``; no unit.

    Not comparable between layers of different size: meant for uniform allocation.
    """
    return _norm(statistics, weights, 1)


def l2_norm(statistics: GroupStatistics, weights: Sequence[Tensor]) -> Tensor:
    """``sqrt(sum w^2)`` over all the weights that write a channel, float64 ``[C]``; no unit."""
    return _norm(statistics, weights, 2)


def _norm(statistics: GroupStatistics, weights: Sequence[Tensor], order: int) -> Tensor:
    if not weights:
        return torch.zeros(statistics.channels, dtype=torch.float64)
    rows = torch.cat([w.double() for w in weights], 1)
    return rows.abs().sum(1) if order == 1 else rows.square().sum(1).sqrt()
