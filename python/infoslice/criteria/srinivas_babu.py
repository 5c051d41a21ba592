"""Neurons that repeat another one go first, and that one takes over their outgoing weights.

Srinivas and Babu 2015, "Data-free parameter pruning for deep neural networks", BMVC, arXiv
1507.06149. The formulas are taken from third-party descriptions and code; the released code of one
of them (PAODING) computes ``|a_j| |eps_ij|`` without the squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infoslice.criteria.fpgm import squared_distances
from infoslice.group_statistics import GroupStatistics
from infoslice.selection import increasing

__all__ = ["merges", "srinivas_babu"]


def srinivas_babu(statistics: GroupStatistics, weights: Sequence[Tensor] = ()) -> Tensor:
    """What each channel's merging into another one costs at its turn, float64 ``[C]``; no unit.

    The saliency of removing channel j in favour of channel i is::

        s_ij = <a_j^2> |W_i - W_j|^2

    with W the incoming weights, the bias appended, and <a_j^2> the mean over the neurons that read
    j of its squared outgoing weights. The pair of the least saliency is merged (``a_i += a_j``, j
    is removed, its row and column leave the matrix and those of i are renewed) until one channel is
    left. The score of a channel is its saliency when it goes (at least that of the channel before
    it, so that the ranking is the order of removal); the one left gets twice the sum of all.

    Beyond fully connected layers: W is all that makes the channel (filters with the batch norm
    that alone follows folded in, see :func:`infoslice.group_weights.incoming`), summed over all
    layers that write the group; <a_j^2> is summed over kernel positions and over the layers that
    read it. Assumes inputs of the layer that are white and of the same scale, so that scores of
    layers do not compare: meant for uniform allocation, with the compensation ``"merge"``
    (:func:`merges`). Reads weights only. O(C^2 k) for k incoming weights a channel, and then about
    O(C (C + r m)); the matrix of distances takes 8 C^2 bytes.

    Args:
        statistics: of the group.
        weights: not used.

    Raises:
        NotMeasuredError: no weights read the channels.
    """
    order, saliency, _ = _merge_all(statistics, torch.ones(statistics.channels, dtype=torch.bool))
    losses = increasing(torch.tensor(saliency, dtype=torch.float64))
    scores = torch.zeros(statistics.channels, dtype=torch.float64)
    scores += 2 * losses.sum()  # of the channel that is left
    scores[order] = losses
    return scores


def merges(statistics: GroupStatistics, keep: Tensor) -> Tensor:
    """Into which channel each one merges, int64 ``[C]``: one that is kept, itself if it is.

    The removal of :func:`srinivas_babu` with the channels in ``keep`` held back; a channel that
    merged into one that merges later ends where that one does. For a ``keep`` that the criterion
    chose these are the very merges behind its scores.

    Raises NotMeasuredError if no weights read the channels, ValueError if ``keep`` is empty.
    """
    if not len(keep):
        raise ValueError("merges: argument keep: expected at least one channel, got none")
    removable = torch.ones(statistics.channels, dtype=torch.bool)
    removable[keep] = False
    order, _, into = _merge_all(statistics, removable)
    target = torch.arange(statistics.channels)
    for channel in reversed(order):  # those that went later are settled first
        target[channel] = target[into[channel]]
    return target


class _Merged(NamedTuple):
    """Channels in the order they went, what each cost, and into which it merged."""

    order: list[int]
    saliency: list[float]
    into: dict[int, int]


def _merge_all(statistics: GroupStatistics, removable: Tensor) -> _Merged:
    """Merge until none that is removable, or one channel, is left."""
    outgoing = [a.clone() for a in statistics.outgoing]
    distances = squared_distances(statistics.incoming)
    distances.fill_diagonal_(torch.inf)
    # Of each channel only the nearest other one matters: argmin_i s_ij does not depend on a_j.
    nearest = distances.min(1)
    least, partner = nearest.values, nearest.indices
    mean_square = sum((a.square().mean(2).sum(1) for a in outgoing), start=torch.zeros_like(least))
    blocked = torch.zeros_like(least).masked_fill_(~removable.to(least.device), torch.inf)
    merged = _Merged([], [], {})
    for _ in range(min(int(removable.sum()), len(least) - 1)):
        saliency = mean_square * least + blocked
        j = int(saliency.argmin())
        i = int(partner[j])
        merged.order.append(j)
        merged.saliency.append(float(saliency[j]))
        merged.into[j] = i
        mean_square[i] = 0.0
        for a in outgoing:
            a[i] += a[j]
            mean_square[i] += a[i].square().mean(1).sum()
        blocked[j] = torch.inf
        distances[:, j] = torch.inf
        orphans = (partner == j).nonzero().flatten()
        renewed = distances[orphans].min(1)
        least[orphans], partner[orphans] = renewed.values, renewed.indices
    return merged
