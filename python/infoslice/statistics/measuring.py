"""Moments of one batch of what a layer reads and writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoslice import ops
from infoslice.statistics.layers import output_positions, padded, receptive_fields, supported
from infoslice.statistics.moments import Moments

__all__ = ["measure"]


def measure(layer: nn.Module, x: Tensor, y: Tensor | None = None) -> Moments:
    """Moments of one batch: ``x`` as ``layer`` gets it and, if given, an output of its shape.

    Raises TypeError for a layer that is not :func:`supported`, and what the covariance ops raise.
    """
    if not supported(layer):
        raise TypeError(
            f"measure: argument layer: expected a linear layer or a convolution with groups=1, got "
            f"{type(layer).__name__}"
        )
    x = x.detach()
    y = None if y is None else y.detach()
    if isinstance(layer, _ConvTransposeNd):
        if y is not None:
            raise TypeError(
                f"measure: argument y: expected None for a transposed convolution, whose outputs "
                f"are no samples of its inputs, got a tensor of shape {tuple(y.shape)}"
            )
        return _of_channels(x, None, 1)
    if not isinstance(layer, _ConvNd):
        return _of_channels(x, y, -1)
    x = padded(layer, x)
    return _of_volumes(layer, x, y) if x.dim() == 5 else _of_patches(layer, x, y)


def _of_channels(x: Tensor, y: Tensor | None, channel_dim: int) -> Moments:
    count = x.numel() // x.shape[channel_dim]
    own = ops.covariance(x, channel_dim=channel_dim, correction=0, dtype=torch.float64)
    if y is None:
        return _without_output(own, count)
    cross = ops.cross_covariance(
        x, y, channel_dim=channel_dim, correction=0, dtype=torch.float64
    ).covariance
    return _with_output(own, cross, y, channel_dim, count)


def _of_patches(layer: _ConvNd, x: Tensor, y: Tensor | None) -> Moments:
    geometry = {"stride": layer.stride, "dilation": layer.dilation}
    kernel = tuple(layer.kernel_size)
    own = ops.patch_covariance(x, kernel, **geometry, correction=0, dtype=torch.float64)
    count = x.shape[0] * torch.Size(output_positions(layer, x)).numel()
    if y is None:
        return _without_output(own, count)
    cross = ops.patch_cross_covariance(
        x, y, kernel, **geometry, correction=0, dtype=torch.float64
    ).covariance
    return _with_output(own, cross, y, 1, count)


def _of_volumes(layer: _ConvNd, x: Tensor, y: Tensor | None) -> Moments:
    total, seen = None, 0
    targets = None if y is None else y.movedim(1, -1).flatten(0, -2)
    for rows in receptive_fields(layer, x):
        target = None if targets is None else targets[seen : seen + len(rows)]
        seen += len(rows)
        found = _of_channels(rows, target, -1)
        total = found if total is None else total.merge(found)
    assert total is not None  # an input without samples gives one empty chunk, which is refused
    return total


def _without_output(own: ops.Covariance[Tensor], count: int) -> Moments:
    empty = own.mean.new_empty(0)
    return Moments(
        count,
        own.mean,
        empty,
        own.covariance * count,
        own.covariance.new_empty(len(own.mean), 0),
        own.covariance.new_empty(0, 0),
    )


def _with_output(
    own: ops.Covariance[Tensor], cross: Tensor, y: Tensor, channel_dim: int, count: int
) -> Moments:
    of_y = ops.covariance(y, channel_dim=channel_dim, correction=0, dtype=torch.float64)
    return Moments(
        count,
        own.mean,
        of_y.mean,
        own.covariance * count,
        cross * count,
        of_y.covariance * count,
    )
