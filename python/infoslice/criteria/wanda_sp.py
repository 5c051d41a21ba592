"""Channels whose weighted activations are small go first.

Wanda-sp: the structured form of Wanda (Sun, Liu, Bair and Kolter 2024, arXiv 2306.11695) that An,
Zhao, Yu, Tang and Wang 2024 (FLAP, arXiv 2312.11983) compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["wanda_sp"]


def wanda_sp(statistics: GroupStatistics, weights: Sequence[Tensor] = ()) -> Tensor:
    """``sum_v mean_r |W_rv| * sqrt(E[X_v^2])`` over the variables v of a channel, float64 ``[C]``.

    W is the layer that reads the channels, X its input; a head or a receptive field is the sum of
    its variables, several layers are summed. The source's norm of X is this root mean square times
    a constant. In the units of the layer's output; compares within a layer, not between layers.
    Takes channels for independent. Needs means and variances alone. O(m d).

    Args:
        statistics: of the group.
        weights: not used.
    """
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in statistics.consumers:
        norm = (layer.variance + layer.mean.square()).sqrt()
        total += (layer.weight.abs().mean(0) * norm)[layer.variables].sum(1)
    return total
