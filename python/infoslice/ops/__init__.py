"""The native ops: one file each, with the wrapper, the fake kernel and the gradient side by side."""

from __future__ import annotations

from infoslice.ops._native import BuildInfo, build_info
from infoslice.ops.slice_channels import slice_channels

__all__ = ["BuildInfo", "build_info", "slice_channels"]
