"""Linear layers and convolutions as matrices on the variables that they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = [
    "output_positions",
    "padded",
    "position_weights",
    "receptive_fields",
    "supported",
    "variables",
    "variables_per_channel",
    "weight_matrix",
]

_FORWARDS = frozenset(
    layer.forward
    for layer in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    )
)  # fmt: skip
_CHUNK = 1 << 22  # variables copied at a time: 32 MiB in float64


def supported(layer: nn.Module) -> bool:
    """Whether ``layer`` can be measured: linear, or a convolution of one group.

    A class with a forward of its own may compute its weight from the parameter, or pad its input.
    """
    if type(layer).forward not in _FORWARDS:
        return False
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and layer.groups == 1)


def weight_matrix(layer: nn.Module) -> Tensor:
    """The layer as a float64 matrix ``[m, d]``: output = matrix @ receptive field + bias.

    Of a transposed convolution, which spreads each input over several outputs, the matrix from one
    input position to all the taps it feeds, ``[m * taps, d]``.
    """
    # A copy even of float64 weights: the layer's own may be silenced or refitted later.
    weight = cast(Tensor, layer.weight).detach().to(torch.float64, copy=True)
    if isinstance(layer, _ConvTransposeNd):
        return weight.flatten(1).T
    return weight.flatten(1)


def variables_per_channel(layer: nn.Module) -> int:
    """Taps of the receptive field for each input channel."""
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        return int(torch.Size(layer.kernel_size).numel())
    return 1


def variables(layer: nn.Module) -> int:
    """d, how many variables the layer reads: columns of its :func:`weight_matrix`."""
    weight = cast(Tensor, layer.weight)
    if isinstance(layer, _ConvTransposeNd):
        return int(weight.shape[0])
    return weight.numel() // weight.shape[0]


def padded(layer: nn.Module, x: Tensor) -> Tensor:
    """``x`` with the padding of ``layer``, of any mode, made explicit: one op serves all of them.

    A transposed convolution pads its output, not what it reads.
    """
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return x
    edges = layer._reversed_padding_repeated_twice
    if not any(edges):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, edges, mode=mode)


def output_positions(layer: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Where ``layer`` is applied in one sample of a padded input; its product counts the samples.

    For a convolution the spatial size of its output; for a linear layer the dimensions of ``x``
    between the first and the channels; for a transposed convolution the spatial size of ``x``.
    """
    if not isinstance(layer, _ConvNd):
        return tuple(x.shape[1:-1])
    if isinstance(layer, _ConvTransposeNd):
        return tuple(x.shape[2:])
    return tuple(
        (length - step * (taps - 1) - 1) // jump + 1
        for length, taps, jump, step in zip(
            x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    )


def position_weights(weights: Tensor | None, x: Tensor) -> Tensor | None:
    """Weights ``[N, T, ...]`` for a layer that reads ``x [..., C]``, which may lie behind pooling.

    What was pooled has the largest weight of its positions; where all positions of all samples were
    put in one dimension, so are the weights. Any other shape is left as it is.
    """
    if weights is None or weights.dim() < x.dim():
        return weights
    if x.dim() == 2 and len(x) == weights.numel():
        return weights.flatten()
    return weights.flatten(x.dim() - 1).amax(-1)


def receptive_fields(layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """What ``layer`` reads of a padded input, as rows ``[n, d]``, one for each output position.

    A few samples of the batch at a time, so that the memory for copies stays small.
    """
    taps = variables_per_channel(layer)
    channel_dim = 1 if isinstance(layer, _ConvNd) else -1
    d = x.shape[channel_dim] * taps
    few = max(1, _CHUNK // max(1, torch.Size(output_positions(layer, x)).numel() * d))
    for samples in torch.split(x, few):
        if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
            yield _patches(layer, samples).reshape(-1, d)
        else:
            yield samples.movedim(channel_dim, -1).reshape(-1, d)


def _patches(layer: _ConvNd, x: Tensor) -> Tensor:
    """``[N, *positions, C, *taps]``, a view."""
    strides = x.stride()
    jumps = [s * jump for s, jump in zip(strides[2:], layer.stride, strict=True)]
    steps = [s * step for s, step in zip(strides[2:], layer.dilation, strict=True)]
    return x.as_strided(
        (len(x), *output_positions(layer, x), x.shape[1], *layer.kernel_size),
        (strides[0], *jumps, strides[1], *steps),
    )
