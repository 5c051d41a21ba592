"""Channels that fluctuate little, and whose mean a bias can replace, go first.

An, Zhao, Yu, Tang and Wang 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language
Models", AAAI, arXiv 2312.11983. The method also adds the mean of what was removed to the bias
(``compensation="bias"``) and lets the layers' widths differ (``standardized`` with
``allocation="global"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["Metric", "flap"]

Metric = Literal["wifv", "wifn", "ifv"]


def flap(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    metric: Metric = "wifv",
    standardized: bool = False,
) -> Tensor:
    """Fluctuation of a channel, seen through the weights that read it, float64 ``[C]``.

    With W the layer that reads the channels and X its input, summed over the variables v of a
    channel and over the layers:

    * ``wifv``: ``Var(X_v) * sum_r W_rv^2``, what the squared error of the output grows by when X_v
      is replaced by its mean, others unchanged;
    * ``wifn``: ``sqrt(E[X_v^2]) * sum_r |W_rv|``;
    * ``ifv``: ``Var(X_v)``.

    Needs means and variances alone; takes channels for uncorrelated. O(m d). The released code
    squares the attention metric once more; that is left out.

    Args:
        statistics: of the group.
        weights: not used.
        metric: see above.
        standardized: subtract the mean of the group's scores and divide by their standard
            deviation, so that scores of different groups may share one threshold. All zero if the
            scores are equal.

    Raises:
        ValueError: another ``metric``.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"flap: argument metric: expected one of {get_args(Metric)}, got {metric}")
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in statistics.consumers:
        if metric == "wifv":
            values = layer.variance * layer.weight.square().sum(0)
        elif metric == "wifn":
            norm = (layer.variance + layer.mean.square()).sqrt()
            values = norm * layer.weight.abs().sum(0)
        else:
            values = layer.variance
        total += values[layer.variables].sum(1)
    if not standardized:
        return total
    spread = total.std(correction=0)
    return (total - total.mean()) / spread if spread > 0 else torch.zeros_like(total)
