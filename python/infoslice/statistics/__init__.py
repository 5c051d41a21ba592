"""What is measured: means and covariances of what layers read and write, streamed over batches."""

from __future__ import annotations

from infoslice.statistics.accumulator import Accumulator, Stream, collect
from infoslice.statistics.entropy import (
    corrected_gaussian_mi,
    gaussian_entropy_bias,
    gaussian_mi_bias,
)
from infoslice.statistics.layers import (
    supported,
    variables,
    variables_per_channel,
    weight_matrix,
)
from infoslice.statistics.measuring import measure
from infoslice.statistics.moments import Moments, Shrinkage, Structure
from infoslice.statistics.samples import Samples, collect_samples
from infoslice.statistics.sampling_errors import SamplingErrors

__all__ = [
    "Accumulator",
    "Moments",
    "Samples",
    "SamplingErrors",
    "Shrinkage",
    "Stream",
    "Structure",
    "collect",
    "collect_samples",
    "corrected_gaussian_mi",
    "gaussian_entropy_bias",
    "gaussian_mi_bias",
    "measure",
    "supported",
    "variables",
    "variables_per_channel",
    "weight_matrix",
]
