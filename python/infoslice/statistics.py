"""What is measured: means and covariances of what layers read and write, streamed over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoslice import ops
from infoslice.perturbation import Inputs, evaluating

__all__ = [
    "Moments",
    "collect",
    "measure",
    "supported",
    "variables",
    "variables_per_channel",
    "weight_matrix",
]

Stream = Callable[[Tensor], Tensor]

_FORWARDS = frozenset(
    layer.forward
    for layer in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    )
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Moments:
    """Joint first and second moments of a layer's input X ``[n, d]`` and output Y ``[n, m]``.

    For a convolution X is the receptive field: ``d = channels * taps``, the taps of one channel
    next to each other, as in ``weight.flatten(1)``; every output position is a sample. ``scatter``
    are sums of centred products, float64. ``mean_y``, ``scatter_xy`` and ``scatter_y`` are empty
    (m = 0) where no output was measured.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    scatter_x: Tensor
    scatter_xy: Tensor
    scatter_y: Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together (Chan, Golub and LeVeque 1983), exact."""
        count = self.count + other.count
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean_x + dx * (other.count / count),
            self.mean_y + dy * (other.count / count),
            self.scatter_x + other.scatter_x + weight * torch.outer(dx, dx),
            self.scatter_xy + other.scatter_xy + weight * torch.outer(dx, dy),
            self.scatter_y + other.scatter_y + weight * torch.outer(dy, dy),
        )

    @property
    def covariance_x(self) -> Tensor:
        """``[d, d]``, divided by n."""
        return self.scatter_x / self.count

    @property
    def covariance_xy(self) -> Tensor:
        """``[d, m]``, divided by n."""
        return self.scatter_xy / self.count

    @property
    def covariance_y(self) -> Tensor:
        """``[m, m]``, divided by n."""
        return self.scatter_y / self.count


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
    if isinstance(layer, _ConvNd):
        x = _padded(layer, x)
        return _of_volumes(layer, x, y) if x.dim() == 5 else _of_patches(layer, x, y)
    return _of_channels(x, y, -1)


def collect(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str],
    *,
    batch_size: int = 64,
    outputs: Mapping[str, Stream] | None = None,
    fresh_noise: Stream | None = None,
) -> dict[str, Moments]:
    """Run ``model`` in eval mode and measure ``layers``; memory is bounded by one batch.

    Args:
        model: nothing of it changes.
        inputs: what is put in.
        layers: module paths, each :func:`supported`. Layers called several times are pooled.
        batch_size: samples per forward.
        outputs: layers whose output is measured too, each with the function applied to it first
            (the activation; ``torch.nn.Identity()`` for the plain output).
        fresh_noise: replaces the input of each layer, to perturb every layer by itself.

    Raises:
        ValueError: a layer was never called, or an activation is NaN or infinite.
    """
    outputs = outputs or {}
    found: dict[str, Moments] = {}
    names = list(dict.fromkeys(layers))

    def hook_of(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            x = args[0]
            if fresh_noise is not None:
                x = fresh_noise(x)
                y = cast(Tensor, layer.forward(x))
            of = outputs.get(name)
            moments = measure(layer, x, None if of is None else of(y))
            found[name] = found[name].merge(moments) if name in found else moments

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        with evaluating(model), torch.no_grad():
            for batch in inputs.batches(batch_size):
                model(*batch.args, **batch.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"collect: argument layers: expected layers that are called, got {missing}"
        )
    return found


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
    count = x.shape[0] * _positions(layer, x)
    if y is None:
        return _without_output(own, count)
    cross = ops.patch_cross_covariance(
        x, y, kernel, **geometry, correction=0, dtype=torch.float64
    ).covariance
    return _with_output(own, cross, y, 1, count)


def _of_volumes(layer: _ConvNd, x: Tensor, y: Tensor | None) -> Moments:
    """Three spatial dimensions: one image at a time, its patches built as a view and copied."""
    total: Moments | None = None
    for i in range(x.shape[0]):
        image = x[i]
        strides = image.stride()
        sizes = [
            (length - step * (taps - 1) - 1) // jump + 1
            for length, taps, jump, step in zip(
                image.shape[1:], layer.kernel_size, layer.stride, layer.dilation, strict=True
            )
        ]
        jumps = [s * jump for s, jump in zip(strides[1:], layer.stride, strict=True)]
        steps = [s * step for s, step in zip(strides[1:], layer.dilation, strict=True)]
        view = image.as_strided(
            (*sizes, image.shape[0], *layer.kernel_size), (*jumps, strides[0], *steps)
        )
        patches = view.reshape(torch.Size(sizes).numel(), -1)
        target = None if y is None else y[i].flatten(1).T
        moments = _of_channels(patches, target, -1)
        total = moments if total is None else total.merge(moments)
    assert total is not None  # an empty batch was refused by the covariance op
    return total


def _positions(layer: _ConvNd, x: Tensor) -> int:
    positions = 1
    for length, taps, jump, step in zip(
        x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        positions *= (length - step * (taps - 1) - 1) // jump + 1
    return positions


def _padded(layer: _ConvNd, x: Tensor) -> Tensor:
    """Padding of any mode made explicit, so that one op serves all of them."""
    edges = layer._reversed_padding_repeated_twice
    if not any(edges):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, edges, mode=mode)


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
