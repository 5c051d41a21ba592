"""Channels whose outgoing weights another channel's predict go first.

Wang, Fu, Guo, Cai, Yang and Cao 2019, "COP: Customized Deep Model Compression via Regularized
Correlation-Based Filter-Level Pruning", IJCAI, arXiv 1906.10337.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["cop"]


def cop(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    top_k: int = 3,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 0.0,
    macs: Mapping[str, float] | None = None,
    parameters: Mapping[str, float] | None = None,
) -> Tensor:
    """One less the correlation of a channel's outgoing weights with others', float64 ``[C]``.

    Of the layer that reads the channels, with w_ip the weights of its outputs on channel i at
    kernel position p, and means over p::

        r_ij = mean_p |corr(w_ip, w_jp)|          divided by the largest r_ij, i != j
        R_i = mean of the top_k largest r_ij, j != i
        score_i = alpha (1 - R_i) + beta (1 - log F / max log F) + gamma (1 - log P / max log P)

    F and P are the MACs and parameters of the layers that write the group, the largest that of any
    group. Where several layers read the group, R is their mean. It is the correlation of *weights*:
    what goes in plays no part. Without unit; the division makes layers comparable in the paper's
    sense, for a global ranking. Reads weights only. O(C^2 r m).

    Choices: a correlation with weights that are constant over the outputs is 0, as in the released
    code; but a channel that only zeros read has R = 1 and goes first (there it would stay). A
    layer in which no two channels correlate has R = 0. The released code rounds ``corr`` by adding
    1e-8 to its denominator, which is not done here.

    Args:
        statistics: of the group.
        weights: not used.
        top_k: others that count, at most C - 1 of them; > 0.
        alpha: weight of the correlation, >= 0.
        beta: weight of the MACs, >= 0; needs ``macs``. See also ``allocation="per_macs"``.
        gamma: weight of the parameters, >= 0; needs ``parameters``.
        macs: group name -> MACs of the layers that write it, > 1, for every group to be compared.
        parameters: group name -> their parameters, > 1.

    Raises:
        ValueError: an argument out of range, or costs missing.
        NotMeasuredError: no weights read the channels.
    """
    if top_k < 1:
        raise ValueError(f"cop: argument top_k: expected at least 1, got {top_k}")
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not 0 <= value < math.inf:
            raise ValueError(f"cop: argument {name}: expected a finite number >= 0, got {value}")
    scores = alpha * (1 - _redundancy(statistics, top_k))
    for name, factor, costs in (("macs", beta, macs), ("parameters", gamma, parameters)):
        if factor > 0:
            scores = scores + factor * _cheapness(name, statistics.name, costs)
    return scores


def _redundancy(statistics: GroupStatistics, top_k: int) -> Tensor:
    """R of every channel, the mean over the layers that read the group."""
    found = []
    for outgoing in statistics.outgoing:
        rows = outgoing.transpose(0, 1)  # [positions, C, outputs]
        centred = rows - rows.mean(2, keepdim=True)
        norm = centred.norm(dim=2, keepdim=True)
        # Constant weights leave nothing but rounding once their mean is gone.
        constant = norm <= 1e-12 * rows.norm(dim=2, keepdim=True)
        unit = (centred / norm).masked_fill(constant, 0.0)
        r = torch.stack([(u @ u.T).abs() for u in unit]).mean(0).fill_diagonal_(0.0)
        largest = r.max()
        if largest > 0:
            r = r / largest
        count = min(top_k, len(r) - 1)
        mean = r.topk(count).values.mean(1) if count else r.new_zeros(len(r))
        found.append(mean.masked_fill(~outgoing.flatten(1).any(1), 1.0))
    return torch.stack(found).mean(0)


def _cheapness(name: str, group: str, costs: Mapping[str, float] | None) -> float:
    """``1 - log cost / max log cost``."""
    if costs is None or group not in costs or not min(costs.values()) > 1:
        got = "None" if costs is None else sorted(costs.items())
        raise ValueError(
            f"cop: argument {name}: expected numbers > 1 for all groups, '{group}' among them, "
            f"got {got}"
        )
    return 1 - math.log(costs[group]) / max(math.log(cost) for cost in costs.values())
