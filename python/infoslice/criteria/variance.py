"""Channels of small variance go first: their mean, folded into a bias, replaces them.

Variance-based pruning, Berisha, Mehta, Wolters and Nagel 2025, arXiv 2507.12988.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["variance"]


def variance(statistics: GroupStatistics, weights: Sequence[Tensor] = ()) -> Tensor:
    """``Var(X_c)`` of what the layers read, float64 ``[C]``; ``compensation="bias"`` belongs to it.

    The mean over the variables of a channel and over the layers that read it. In squared units of
    the activations: meant for uniform allocation. Ignores what the weights make of a channel, and
    what other channels tell of it. Needs variances alone. O(d).

    Args:
        statistics: of the group.
        weights: not used.
    """
    layers = [layer.variance[layer.variables].mean(1) for layer in statistics.consumers]
    return torch.stack(layers).mean(0)
