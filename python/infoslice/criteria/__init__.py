"""Which channels carry information: one published method, one file, one function.

A criterion is a function ``(statistics, weights) -> scores``: the statistics of one group
(:class:`infoslice.GroupStatistics`, measured only if it looks at them) and the weights of the
layers that write its channels (``[C, ...]`` each); it returns one score per channel, float ``[C]``,
high = keep. Any function of this shape can be given to :func:`infoslice.prune`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from infoslice.criteria.batch_norm_scale import batch_norm_scale
from infoslice.criteria.causal import causal
from infoslice.criteria.cop import cop
from infoslice.criteria.fpgm import fpgm
from infoslice.criteria.magnitude import l1_norm, l2_norm
from infoslice.criteria.random import random
from infoslice.criteria.srinivas_babu import merges, srinivas_babu
from infoslice.group_statistics import GroupStatistics

__all__ = [
    "CRITERIA",
    "Criterion",
    "batch_norm_scale",
    "causal",
    "cop",
    "fpgm",
    "l1_norm",
    "l2_norm",
    "merges",
    "random",
    "srinivas_babu",
]

Criterion = Callable[[GroupStatistics, Sequence[Tensor]], Tensor]

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "batch_norm_scale": batch_norm_scale,
    "causal": causal,
    "cop": cop,
    "fpgm": fpgm,
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "random": random,
    "srinivas_babu": srinivas_babu,
}
