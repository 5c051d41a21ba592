"""The native ops, one file each: wrapper, fake kernel and gradient side by side."""

from __future__ import annotations

from infoslice.ops._native import BuildInfo, build_info
from infoslice.ops.cholesky import Cholesky, LogDet, cholesky, logdet, submatrix_logdet
from infoslice.ops.covariance import (
    Covariance,
    CrossCovariance,
    covariance,
    cross_covariance,
    patch_covariance,
    patch_cross_covariance,
)
from infoslice.ops.gaussian_mi import (
    Information,
    conditional_mi,
    gaussian_mi,
    marginal_mi,
    pairwise_mi,
)
from infoslice.ops.greedy import (
    Elimination,
    Selection,
    backward_elimination,
    forward_selection,
    obs_elimination,
)
from infoslice.ops.precision import (
    PrecisionBlocks,
    PrecisionDiagonal,
    precision_blocks,
    precision_diagonal,
)
from infoslice.ops.slice_channels import slice_channels, slice_channels_
from infoslice.ops.spanning_tree import SpanningTree, spanning_tree

__all__ = [
    "BuildInfo",
    "Cholesky",
    "Covariance",
    "CrossCovariance",
    "Elimination",
    "Information",
    "LogDet",
    "PrecisionBlocks",
    "PrecisionDiagonal",
    "Selection",
    "SpanningTree",
    "backward_elimination",
    "build_info",
    "cholesky",
    "conditional_mi",
    "covariance",
    "cross_covariance",
    "forward_selection",
    "gaussian_mi",
    "logdet",
    "marginal_mi",
    "obs_elimination",
    "pairwise_mi",
    "patch_covariance",
    "patch_cross_covariance",
    "precision_blocks",
    "precision_diagonal",
    "slice_channels",
    "slice_channels_",
    "spanning_tree",
    "submatrix_logdet",
]
