"""Which channels carry information: one published method, one file, one function.

A criterion is a function ``(statistics, weights) -> scores``: the statistics of one group
(:class:`infoslice.GroupStatistics`, measured only if it looks at them) and the weights of the
layers that write its channels (``[C, ...]`` each); it returns one score per channel, float ``[C]``,
high = keep. Any function of this shape can be given to :func:`infoslice.prune`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from infoslice.criteria.activation_norm import activation_norm
from infoslice.criteria.batch_norm_scale import batch_norm_scale
from infoslice.criteria.causal import causal
from infoslice.criteria.cop import cop
from infoslice.criteria.flap import flap
from infoslice.criteria.fpgm import fpgm
from infoslice.criteria.greedy_mi import greedy_mi
from infoslice.criteria.leverage import leverage
from infoslice.criteria.magnitude import l1_norm, l2_norm
from infoslice.criteria.mint import mint
from infoslice.criteria.obs import obs
from infoslice.criteria.random import random
from infoslice.criteria.srinivas_babu import merges, srinivas_babu
from infoslice.criteria.variance import variance
from infoslice.criteria.wanda_sp import wanda_sp
from infoslice.group_statistics import GroupStatistics

__all__ = [
    "CRITERIA",
    "Criterion",
    "activation_norm",
    "batch_norm_scale",
    "causal",
    "cop",
    "flap",
    "fpgm",
    "greedy_mi",
    "l1_norm",
    "l2_norm",
    "leverage",
    "merges",
    "mint",
    "obs",
    "random",
    "srinivas_babu",
    "variance",
    "wanda_sp",
]

Criterion = Callable[[GroupStatistics, Sequence[Tensor]], Tensor]

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "activation_norm": activation_norm,
    "batch_norm_scale": batch_norm_scale,
    "causal": causal,
    "cop": cop,
    "flap": flap,
    "fpgm": fpgm,
    "greedy_mi": greedy_mi,
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "leverage": leverage,
    "mint": mint,
    "obs": obs,
    "random": random,
    "srinivas_babu": srinivas_babu,
    "variance": variance,
    "wanda_sp": wanda_sp,
}
