"""Moments of one batch of what a layer reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoslice import ops
from infoslice.statistics.layers import (
    output_positions,
    padded,
    receptive_fields,
    supported,
    variables,
    variables_per_channel,
)
from infoslice.statistics.moments import Moments, Structure
from infoslice.statistics.sampling_errors import SamplingErrors
from infoslice.statistics.variances import diagonal_of_patches

__all__ = ["measure"]


def measure(
    layer: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    structure: Structure = "full",
    block_size: int | None = None,
    output_covariance: bool = True,
    sampling_errors: bool = False,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Moments:
    """Moments of one batch: ``x`` as ``layer`` gets it and, if given, an output of its shape.

    Args:
        layer: :func:`supported`.
        x: ``[N, ...]``; its first dimension counts samples (images, sequences).
        y: ``[N, ...]``; needs structure ``"full"``.
        weights: of the samples or of their positions, >= 0: ``[N]``, or more of the dimensions in
            which the layer is applied, from the front (``[N, T]`` for tokens ``[N, T, C]``; for a
            convolution ``[N, *spatial size of its output]``). What has weight 0 is not looked at.
        structure: of the covariance of X, see :class:`Moments`.
        block_size: variables of a block, a divisor of d; by default those of one channel.
        output_covariance: of Y with itself; a regression of Y on X does without.
        sampling_errors: keep :class:`SamplingErrors` too.
        transform: applied to ``x`` after its padding was made explicit, before all else.

    Returns:
        The moments; of count 0 if all weights are 0.

    Raises:
        TypeError: a layer that is not supported, or ``y`` for a transposed convolution.
        ValueError: an argument out of range; NaN or infinite values.
    """
    _check(layer, y, structure)
    x = padded(layer, x.detach())
    x = x if transform is None else transform(x)
    y = None if y is None else y.detach()
    w = None if weights is None else _row_weights(layer, x, weights)
    if structure == "full" and w is None:
        moments = _of_batch(layer, x, y, output_covariance)
    elif structure == "diagonal" and _has_taps(layer) and (weights is None or weights.dim() == 1):
        moments = diagonal_of_patches(cast(_ConvNd, layer), x, None if w is None else w[:, 0])
    else:
        size = _block_size(layer, block_size)
        moments = _of_pieces(layer, x, y, w, structure, size)
    if transform is not None:
        moments = replace(moments, transformed=True)
    if sampling_errors and moments.count:
        errors = _errors(layer, x, w, moments)
        moments = replace(moments, errors=errors)
    return moments


def _check(layer: nn.Module, y: Tensor | None, structure: Structure) -> None:
    if not supported(layer):
        raise TypeError(
            f"measure: argument layer: expected a linear layer or a convolution with groups=1, got "
            f"{type(layer).__name__}"
        )
    if y is not None and isinstance(layer, _ConvTransposeNd):
        raise TypeError(
            f"measure: argument y: expected None for a transposed convolution, whose outputs "
            f"are no samples of its inputs, got a tensor of shape {tuple(y.shape)}"
        )
    if structure not in get_args(Structure):
        raise ValueError(
            f"measure: argument structure: expected one of {get_args(Structure)}, got {structure!r}"
        )
    if y is not None and structure != "full":
        raise ValueError(
            f"measure: argument y: expected None with structure {structure!r}, got a tensor of "
            f"shape {tuple(y.shape)}"
        )


def _block_size(layer: nn.Module, given: int | None) -> int:
    size = variables_per_channel(layer) if given is None else given
    if size < 1 or variables(layer) % size:
        raise ValueError(
            f"measure: argument block_size: expected a divisor of the {variables(layer)} variables "
            f"of the layer, got {size}"
        )
    return size


def _has_taps(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)


def _row_weights(layer: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """``[N, positions]`` float64."""
    shape = (len(x), *output_positions(layer, x))
    w = weights.detach().to(x.device, torch.float64)
    if not 1 <= w.dim() <= len(shape) or w.shape != shape[: w.dim()]:
        raise ValueError(
            f"measure: argument weights: expected one for each entry of the first dimensions of "
            f"{shape}, in which the layer is applied, got shape {tuple(w.shape)}"
        )
    if not bool((w.isfinite() & (w >= 0)).all()):
        raise ValueError("measure: argument weights: expected numbers >= 0, got others")
    return w.view(*w.shape, *[1] * (len(shape) - w.dim())).expand(shape).reshape(len(x), -1)


def _of_batch(layer: nn.Module, x: Tensor, y: Tensor | None, of_y: bool) -> Moments:
    """Full covariances of samples of weight one: by the kernels."""
    if isinstance(layer, _ConvTransposeNd):
        return _of_channels(x, None, 1)
    if not isinstance(layer, _ConvNd):
        return _of_channels(x, y, -1, of_y)
    if x.dim() == 5:
        return _of_pieces(layer, x, y, None, "full", 1)
    geometry = {"stride": layer.stride, "dilation": layer.dilation}
    kernel = tuple(layer.kernel_size)
    own = ops.patch_covariance(x, kernel, **geometry, correction=0, dtype=torch.float64)
    count = x.shape[0] * torch.Size(output_positions(layer, x)).numel()
    if y is None:
        return _without_output(own, count)
    cross = ops.patch_cross_covariance(x, y, kernel, **geometry, correction=0, dtype=torch.float64)
    return _with_output(own, cross, y if of_y else None, 1, count)


def _of_channels(x: Tensor, y: Tensor | None, channel_dim: int, of_y: bool = True) -> Moments:
    count = x.numel() // x.shape[channel_dim]
    own = ops.covariance(x, channel_dim=channel_dim, correction=0, dtype=torch.float64)
    if y is None:
        return _without_output(own, count)
    cross = ops.cross_covariance(x, y, channel_dim=channel_dim, correction=0, dtype=torch.float64)
    return _with_output(own, cross, y if of_y else None, channel_dim, count)


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
    own: ops.Covariance[Tensor],
    cross: ops.CrossCovariance[Tensor],
    y: Tensor | None,
    channel_dim: int,
    count: int,
) -> Moments:
    scatter_y = cross.covariance.new_empty(0, 0)
    if y is not None:
        of_y = ops.covariance(y, channel_dim=channel_dim, correction=0, dtype=torch.float64)
        scatter_y = of_y.covariance * count
    return Moments(
        count,
        own.mean,
        cross.mean_y,
        own.covariance * count,
        cross.covariance * count,
        scatter_y,
    )


def _pieces(
    layer: nn.Module, x: Tensor, w: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """A few samples at a time: which positions of the batch, their rows and their weights."""
    start = 0
    for rows in receptive_fields(layer, x):
        at = slice(start, start + len(rows))
        start += len(rows)
        yield at, rows, None if w is None else w.flatten()[at]


def _of_pieces(
    layer: nn.Module,
    x: Tensor,
    y: Tensor | None,
    w: Tensor | None,
    structure: Structure,
    block_size: int,
) -> Moments:
    """With weights, or of blocks, or where there is no kernel: from the rows themselves."""
    flat = y if y is None or not isinstance(layer, _ConvNd) else y.movedim(1, -1)
    targets = None if flat is None else flat.reshape(-1, flat.shape[-1])
    total: Moments | None = None
    for at, rows, weights in _pieces(layer, x, w):
        target = None if targets is None else targets[at]
        if weights is not None:
            # A padded position may hold anything, NaN too.
            live = weights > 0
            rows, weights = rows[live], weights[live]
            target = None if target is None else target[live]
            if bool((weights == 1).all()):
                weights = None
        if weights is None and structure == "full" and len(rows):
            found = _of_channels(rows, target, -1)
        else:
            found = _of_rows(rows, target, weights, structure, block_size)
        total = found if total is None else total.merge(found)
    if total is None:
        raise ValueError("measure: argument x: expected at least one sample, got none")
    return total


def _of_rows(
    rows: Tensor, target: Tensor | None, w: Tensor | None, structure: Structure, block_size: int
) -> Moments:
    ones = rows.new_ones(len(rows), dtype=torch.float64) if w is None else w
    count = float(ones.sum())
    mean_x, u = _centred(rows, ones)
    if target is None:
        target = rows.new_empty(len(rows), 0)
    mean_y, v = _centred(target, ones)
    weighted = u if w is None else u * w[:, None]
    if structure == "diagonal":
        scatter = (u * weighted).sum(0)
    elif structure == "block":
        one, two = (
            t.view(len(u), u.shape[1] // block_size, block_size).transpose(0, 1)
            for t in (u, weighted)
        )
        scatter = one.mT @ two
    else:
        scatter = u.T @ weighted
    squares = None if w is None else float(w.square().sum())
    return Moments(
        count, mean_x, mean_y, scatter, weighted.T @ v, (v * ones[:, None]).T @ v, squares
    )


def _centred(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and distances from it, in float64; of a constant exactly 0."""
    pilot = rows[:1].to(torch.float64)
    rows = rows.to(torch.float64) - pilot
    total = w.sum()
    offset = (w @ rows) / torch.where(total > 0, total, 1)
    mean = offset + pilot.sum(0)
    if not bool(mean.isfinite().all()):
        raise ValueError(
            f"measure: argument x: expected finite values, got NaN or infinity in variable "
            f"{int((~mean.isfinite()).nonzero()[0])}"
        )
    return mean, rows - offset


def _errors(layer: nn.Module, x: Tensor, w: Tensor | None, moments: Moments) -> SamplingErrors:
    """About the mean of the batch."""
    mean = moments.mean_x
    full = moments.structure == "full"
    third = mean.new_zeros(len(mean) if full else 0)
    fourth, clusters, cluster_weight = (mean.new_zeros(()) for _ in range(3))
    cluster_offset, cluster_scatter = torch.zeros_like(mean), torch.zeros_like(mean)
    positions = torch.Size(output_positions(layer, x)).numel()
    for _, rows, weights in _pieces(layer, x, w):
        ones = rows.new_ones(len(rows), dtype=torch.float64) if weights is None else weights
        u = (rows.to(torch.float64) - mean).masked_fill_((ones <= 0)[:, None], 0)
        if full:
            squares = u.square().sum(1)
            third += (ones * squares) @ u
            fourth += ones @ squares.square()
        sums = ones.view(-1, positions).sum(1)
        offsets = (ones.view(-1, 1, positions) @ u.view(-1, positions, len(mean))).squeeze(1)
        clusters += (sums > 0).sum()
        cluster_weight += sums.square().sum()
        cluster_offset += sums @ offsets
        cluster_scatter += offsets.square().sum(0)
    return SamplingErrors(third, fourth, clusters, cluster_weight, cluster_offset, cluster_scatter)
