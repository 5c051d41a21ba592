"""What is measured: means and covariances of what layers read and write, streamed over batches."""

from __future__ import annotations

from infoslice.statistics.accumulator import Accumulator, Transform, collect
from infoslice.statistics.copula import Copula
from infoslice.statistics.curvature import Loss, output_curvature
from infoslice.statistics.entropy import (
    corrected_gaussian_mi,
    gaussian_entropy_bias,
    gaussian_mi_bias,
)
from infoslice.statistics.hooks import Stream
from infoslice.statistics.layers import (
    position_weights,
    supported,
    variables,
    variables_per_channel,
    weight_matrix,
)
from infoslice.statistics.measuring import measure
from infoslice.statistics.moments import Moments, Shrinkage, Structure
from infoslice.statistics.quantiles import QuantileSketch
from infoslice.statistics.samples import Samples, collect_samples
from infoslice.statistics.sampling_errors import SamplingErrors
from infoslice.statistics.shrinkage import ridged

__all__ = [
    "Accumulator",
    "Copula",
    "Loss",
    "Moments",
    "QuantileSketch",
    "Samples",
    "SamplingErrors",
    "Shrinkage",
    "Stream",
    "Structure",
    "Transform",
    "collect",
    "collect_samples",
    "corrected_gaussian_mi",
    "gaussian_entropy_bias",
    "gaussian_mi_bias",
    "measure",
    "output_curvature",
    "position_weights",
    "ridged",
    "supported",
    "variables",
    "variables_per_channel",
    "weight_matrix",
]
