"""The ops in a few lines of float64 torch each: what they mean, for readers and for tests.

Every function has the arguments of its namesake in ``infoslice.ops`` that change the result, takes
torch tensors and computes in float64, with no thought of speed, memory or bad input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from infoslice.ops import Covariance, CrossCovariance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "covariance",
    "cross_covariance",
    "patch_covariance",
    "patch_cross_covariance",
    "slice_channels",
]

# -- covariance ------------------------------------------------------------------------------------


def _rows(x: Tensor, channel_dim: int, batch_dims: int) -> Tensor:
    """``x`` as ``[*batch, n, C]``."""
    return x.double().movedim(channel_dim, -1).flatten(batch_dims, -2)


def _unfold(x: Tensor, kernel_size: Any, **geometry: Any) -> Tensor:
    """The patches of ``[N, C, H, W]`` or ``[N, C, L]`` as rows ``[n, C*kh*kw]``."""
    if x.ndim == 3:  # an image of height 1: only the width is padded
        x, pad = x.unsqueeze(2), geometry.pop("padding", 0)
        x, kernel_size = F.pad(x, (pad, pad)), (1, kernel_size)
        geometry = {key: (1, value) for key, value in geometry.items()}
    return F.unfold(x.double(), kernel_size, **geometry).movedim(1, -1).flatten(0, 1)


def cross_covariance(
    x: Tensor, y: Tensor, *, channel_dim: int = -1, batch_dims: int = 0, correction: int = 1
) -> CrossCovariance[Tensor]:
    """Covariances between the channels of two inputs over the same samples."""
    x, y = _rows(x, channel_dim, batch_dims), _rows(y, channel_dim, batch_dims)
    mean_x, mean_y = x.mean(-2), y.mean(-2)
    cov = (x - mean_x.unsqueeze(-2)).mT @ (y - mean_y.unsqueeze(-2))
    return CrossCovariance(cov / (x.shape[-2] - correction), mean_x, mean_y)


def covariance(
    x: Tensor, *, channel_dim: int = -1, batch_dims: int = 0, correction: int = 1
) -> Covariance[Tensor]:
    """Covariances of the channels of one input."""
    cov, mean, _ = cross_covariance(
        x, x, channel_dim=channel_dim, batch_dims=batch_dims, correction=correction
    )
    return Covariance(cov, mean)


def patch_covariance(
    x: Tensor, kernel_size: Any, *, correction: int = 1, **geometry: Any
) -> Covariance[Tensor]:
    """Covariances of the patches that a convolution sees; geometry: stride, padding, dilation."""
    return covariance(_unfold(x, kernel_size, **geometry), correction=correction)


def patch_cross_covariance(
    x: Tensor, y: Tensor, kernel_size: Any, *, correction: int = 1, **geometry: Any
) -> CrossCovariance[Tensor]:
    """Covariances between patches and the channels of ``y`` at the output positions."""
    rows = _rows(y, 1, 0)
    return cross_covariance(_unfold(x, kernel_size, **geometry), rows, correction=correction)


# -- slice_channels --------------------------------------------------------------------------------


def slice_channels(
    tensors: Sequence[Tensor], dims: Sequence[Sequence[int]], keep: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """The kept indices along each named axis of each tensor."""
    results = []
    for tensor, axes, indices in zip(tensors, dims, keep, strict=True):
        for axis, index in zip(axes, indices, strict=True):
            tensor = torch.index_select(tensor, axis, index)
        results.append(tensor)
    return results
