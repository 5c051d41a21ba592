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
from infoslice.statistics import Loss

__all__ = ["Metric", "flap"]

Metric = Literal["wifv", "wifn", "ifv"]


def flap(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    metric: Metric = "wifv",
    standardized: bool = False,
    squared_heads: bool = False,
    curvature: Loss | None = None,
) -> Tensor:
    """Fluctuation of a channel, seen through the weights that read it, float64 ``[C]``.

    With W a layer that reads the channels and X its input, of every variable v:

    * ``wifv``: ``Var(X_v) * sum_r W_rv^2``, what the squared error of the output grows by when X_v
      is replaced by its mean, others unchanged;
    * ``wifn``: ``sqrt(E[X_v^2]) * sum_r |W_rv|``;
    * ``ifv``: ``Var(X_v)``.

    A channel is the sum of its variables, and several layers are summed. Needs means and variances
    alone; takes channels for uncorrelated. O(m d).

    Args:
        statistics: of the group.
        weights: not used.
        metric: see above.
        standardized: from the values of a layer's variables subtract their mean, divide by their
            standard deviation (0 where they are equal), and take means over the variables of a
            channel (the columns of a head) and over layers in place of sums. Scores of different
            groups may then share one threshold: with ``allocation="global"`` the adaptive widths of
            the source, but that it counts parameters where we count channels.
        squared_heads: square the values where a channel has several variables, before all else:
            what the released code does to those of attention, and the text does not say.
        curvature: of which loss of the network, see :func:`infoslice.statistics.output_curvature`:
            the squared error of ``wifv`` becomes what that loss rises by, ``Var(X_v) W_v' F W_v /
            2``. Not in the source.

    Raises:
        ValueError: another ``metric``; ``curvature`` with one that is no error of outputs.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"flap: argument metric: expected one of {get_args(Metric)}, got {metric}")
    if curvature is not None and metric != "wifv":
        raise ValueError(
            f"flap: argument curvature: expected None with metric {metric!r}, got {curvature!r}"
        )
    found = []
    for layer in statistics.consumers:
        if metric == "wifv":
            w = layer.weight if curvature is None else layer.weighed(curvature) / 2**0.5
            values = layer.variance * w.square().sum(0)
        elif metric == "wifn":
            norm = (layer.variance + layer.mean.square()).sqrt()
            values = norm * layer.weight.abs().sum(0)
        else:
            values = layer.variance
        own = values[layer.variables]
        if squared_heads and own.shape[1] > 1:
            own = own.square()
        found.append(_standardized(own).mean(1) if standardized else own.sum(1))
    total = torch.stack(found)
    return total.mean(0) if standardized else total.sum(0)


def _standardized(values: Tensor) -> Tensor:
    """z-scores among all entries; 0 where these differ by no more than rounding."""
    spread = values.std(correction=min(1, values.numel() - 1))
    if not spread > 4 * torch.finfo(values.dtype).eps * values.abs().max():
        return torch.zeros_like(values)
    return (values - values.mean()) / spread
