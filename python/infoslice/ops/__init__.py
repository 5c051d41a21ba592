"""The native ops, one file each: wrapper, fake kernel and gradient side by side."""

from __future__ import annotations

from infoslice.ops._native import BuildInfo, build_info
from infoslice.ops.covariance import (
    Covariance,
    CrossCovariance,
    covariance,
    cross_covariance,
    patch_covariance,
    patch_cross_covariance,
)
from infoslice.ops.slice_channels import slice_channels

__all__ = [
    "BuildInfo",
    "Covariance",
    "CrossCovariance",
    "build_info",
    "covariance",
    "cross_covariance",
    "patch_covariance",
    "patch_cross_covariance",
    "slice_channels",
]
