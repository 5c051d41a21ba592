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
    """One pass over the weights: blocks are summed in float32 (float64 for float64), then added."""
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for rows in weights:
        exact = torch.promote_types(rows.dtype, torch.float32)
        for block in torch.split(rows, _BLOCK, 1):
            if block.stride(0) == 1 and len(block) > 1:  # sums along memory: five times faster
                powers = block.to(exact).abs().pow_(order).sum(1)
            else:
                powers = torch.linalg.vector_norm(block, order, 1, dtype=exact).double().pow_(order)
            total += powers.to(total)
    return total.pow_(1 / order)


_BLOCK = 1024  # entries of a row: sums of so few err by 1e-6 in float32
