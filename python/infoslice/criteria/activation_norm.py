"""Channels of small activations go first.

Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation"
(Minitron), arXiv 2407.14679.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["activation_norm"]


def activation_norm(statistics: GroupStatistics, weights: Sequence[Tensor] = ()) -> Tensor:
    """``sqrt(E[X_c^2])`` of what the layers read, float64 ``[C]``.

    Of the source's ways to aggregate, the L2 norm over both batch and sequence (it prefers the mean
    of ``|x|`` over the sequence before the L2 norm over the batch). The mean square over the
    variables of a channel and over the layers that read it. In the units of the activations: meant
    for uniform allocation. Needs means and variances alone. O(d).

    Args:
        statistics: of the group.
        weights: not used.
    """
    squares = [
        (layer.variance + layer.mean.square())[layer.variables].mean(1)
        for layer in statistics.consumers
    ]
    return torch.stack(squares).mean(0).sqrt()
