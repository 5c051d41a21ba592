"""Channels that their batch norm scales by little go first.

Liu, Li, Shen, Huang, Yan and Zhang 2017, "Learning Efficient Convolutional Networks through Network
Slimming", ICCV, arXiv 1708.06519.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["batch_norm_scale"]


def batch_norm_scale(statistics: GroupStatistics, weights: Sequence[Tensor] = ()) -> Tensor:
    """``|gamma|``, the mean over all batch norms that carry the channel, float64 ``[C]``.

    In units of the standard deviation of a channel at the output of a batch norm, so that channels
    of different layers compare, as in the paper, whose threshold is one for the whole network. The
    paper trains with a penalty on ``|gamma|`` that pushes some to zero; without it the ranking is
    much weaker. Layers without a batch norm are left whole. Reads weights only. O(C).

    Args:
        statistics: of the group.
        weights: not used.

    Raises:
        NotMeasuredError: no batch norm with learned scales carries the channels.
    """
    return torch.cat(statistics.batch_norm_scales, 1).abs().mean(1)
