"""What is measured: means and covariances of what layers read and write, streamed over batches."""

from __future__ import annotations

from infoslice.statistics.accumulator import Stream, collect
from infoslice.statistics.layers import (
    supported,
    variables,
    variables_per_channel,
    weight_matrix,
)
from infoslice.statistics.measuring import measure
from infoslice.statistics.moments import Moments
from infoslice.statistics.samples import Samples, collect_samples

__all__ = [
    "Moments",
    "Samples",
    "Stream",
    "collect",
    "collect_samples",
    "measure",
    "supported",
    "variables",
    "variables_per_channel",
    "weight_matrix",
]
