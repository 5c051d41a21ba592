"""Means and variances of the receptive fields of a convolution, without building them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from infoslice.statistics.layers import receptive_fields, variables_per_channel
from infoslice.statistics.moments import Moments

__all__ = ["diagonal_of_patches"]

_CHUNK = 1 << 22  # values copied at a time: 32 MiB in float64


def diagonal_of_patches(layer: _ConvNd, x: Tensor, weights: Tensor | None) -> Moments:
    """Diagonal moments of a padded input ``[N, C, *spatial]``, with weights ``[N]`` or none.

    Sums over samples come first, ``[C, *spatial]`` of them, and of these each tap adds up the
    positions that it meets: two passes over the input instead of one for every tap. Sums are taken
    from the middle of the first sample, in float64; a constant channel has variance 0 exactly.
    """
    w = x.new_ones(len(x), dtype=torch.float64) if weights is None else weights
    if weights is not None:
        x, w = x[w > 0], w[w > 0]
    shape = x.shape[1:]
    sums = x.new_zeros(2, *shape, dtype=torch.float64)
    pilot = x.new_zeros(shape[0], dtype=torch.float64)
    if len(x):
        pilot = x[0].flatten(1)[:, shape.numel() // shape[0] // 2].double()
    few = max(1, _CHUNK // max(1, shape.numel()))
    for images, own in zip(torch.split(x, few), torch.split(w, few), strict=True):
        u = images.double() - pilot.view(-1, *[1] * (len(shape) - 1))
        sums[0] += torch.tensordot(own, u, 1)
        sums[1] += torch.tensordot(own, u.square_(), 1)
    taps = variables_per_channel(layer)
    rows = [torch.cat(list(receptive_fields(layer, total[None]))) for total in sums]
    count = float(w.sum()) * len(rows[0])
    first, second = (r.sum(0) / (count or 1) for r in rows)
    mean = pilot.repeat_interleave(taps) + first
    if not bool((mean.isfinite() & second.isfinite()).all()):
        raise ValueError(
            "measure: argument x: expected finite values, got NaN or infinity in what a "
            f"{type(layer).__name__} reads"
        )
    return Moments(
        count,
        mean,
        mean.new_empty(0),
        (second - first.square()) * count,
        mean.new_empty(len(mean), 0),
        mean.new_empty(0, 0),
        None if weights is None else float(w.square().sum()) * len(rows[0]),
    )
