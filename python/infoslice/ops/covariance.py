"""Covariances of channels: of one input, of two, and of the patches that a convolution sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch

from infoslice.ops._native import T, core, records_gradient, refuse_grad, register_fake, torch_op

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Covariance",
    "CrossCovariance",
    "covariance",
    "cross_covariance",
    "patch_covariance",
    "patch_cross_covariance",
]

if TYPE_CHECKING:

    class Covariance(NamedTuple, Generic[T]):
        """``covariance`` [*batch, C, C] and ``mean`` [*batch, C]."""

        covariance: T
        mean: T

    class CrossCovariance(NamedTuple, Generic[T]):
        """``covariance`` [*batch, Cx, Cy], ``mean_x`` [*batch, Cx] and ``mean_y`` [*batch, Cy]."""

        covariance: T
        mean_x: T
        mean_y: T

else:  # Python 3.10 has no generic named tuples

    class Covariance(NamedTuple):
        """``covariance`` [*batch, C, C] and ``mean`` [*batch, C]."""

        covariance: Any
        mean: Any

    class CrossCovariance(NamedTuple):
        """``covariance`` [*batch, Cx, Cy], ``mean_x`` [*batch, Cx] and ``mean_y`` [*batch, Cy]."""

        covariance: Any
        mean_x: Any
        mean_y: Any


_covariance = torch_op("covariance")
_cross_covariance = torch_op("cross_covariance")
_patch_covariance = torch_op("patch_covariance")
_patch_cross_covariance = torch_op("patch_cross_covariance")


def covariance(
    x: T, *, channel_dim: int = -1, batch_dims: int = 0, correction: int = 1, dtype: Any = None
) -> Covariance[T]:
    """Covariance matrix and mean of the channels of ``x``.

    ``cov[i, j] = sum_k (x[k, i] - mean[i]) (x[k, j] - mean[j]) / (n - correction)``, accumulated in
    tiles of float32 (float64 for float64 input) about the running mean and merged in float64 (Chan,
    Golub and LeVeque, 1983), so that large means cost no accuracy.

    Args:
        x: ``[*batch, ...]`` of float64, float32, float16 or (torch) bfloat16, in any strides: the
            first ``batch_dims`` dimensions are problems of their own; of the others,
            ``channel_dim`` is the channel and all the rest are samples. ``[n, C]`` and
            ``[B, T, C]``: the defaults; ``[N, C, *spatial]``: ``channel_dim=1``; ``[L, n, C]`` as
            ``L`` problems: ``batch_dims=1``.
        channel_dim: dimension of ``x``, negative ones count from the end.
        batch_dims: number of leading batch dimensions.
        correction: subtracted from the number of samples n in the divisor, 0 or more.
        dtype: of the results, float64 or float32; by default float64 for float64 input and float32
            otherwise.

    Returns:
        ``covariance`` ``[*batch, C, C]``, exactly symmetric, in the squared unit of ``x``, and
        ``mean`` ``[*batch, C]``. Both are differentiable with respect to ``x``, repeatedly.

    Raises:
        ValueError: fewer than ``correction + 1`` samples, no channel, a dimension out of range, a
            NaN or Inf in ``x`` (the message names the channel), or an overflow of ``dtype``. CUDA
            tensors: nothing is synchronised, so the rows and columns of such a channel are NaN
            instead, as where the deviations from the mean of a channel of float32 (float16,
            bfloat16) are outside 1e-15 to 1e15 on average.
        TypeError: another dtype, or neither a NumPy array nor a torch tensor.
        RuntimeError: a device for which there is no kernel.
    """
    if isinstance(x, torch.Tensor):
        if records_gradient(x):
            return Covariance(*_with_gradient(x, channel_dim, batch_dims, correction, dtype))
        return Covariance(*_covariance(x, channel_dim, batch_dims, correction, dtype))
    return Covariance(*core.covariance(x, channel_dim, batch_dims, correction, dtype))


def cross_covariance(
    x: T,
    y: T,
    *,
    channel_dim: int = -1,
    batch_dims: int = 0,
    correction: int = 1,
    dtype: Any = None,
) -> CrossCovariance[T]:
    """Covariances between the channels of ``x`` and those of ``y`` over the same samples.

    ``cov[i, j] = sum_k (x[k, i] - mean_x[i]) (y[k, j] - mean_y[j]) / (n - correction)``.

    Args:
        x: as in ``covariance``.
        y: of the dtype and shape of ``x`` but for the size of the channel dimension.
        channel_dim: as in ``covariance``, of ``x`` and ``y`` both.
        batch_dims: as in ``covariance``.
        correction: as in ``covariance``.
        dtype: as in ``covariance``.

    Returns:
        ``covariance`` ``[*batch, Cx, Cy]``, ``mean_x`` ``[*batch, Cx]`` and ``mean_y``
        ``[*batch, Cy]``.

    Raises:
        ValueError: as ``covariance``; or shapes that differ in more than the channels.
        TypeError: as ``covariance``; or dtypes that differ.
        RuntimeError: as ``covariance``; or an input that requires grad while gradients are recorded
            (no gradient is defined).
    """
    if isinstance(x, torch.Tensor):
        refuse_grad("cross_covariance", x=x, y=y)
        return CrossCovariance(*_cross_covariance(x, y, channel_dim, batch_dims, correction, dtype))
    return CrossCovariance(*core.cross_covariance(x, y, channel_dim, batch_dims, correction, dtype))


def patch_covariance(
    x: T,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    correction: int = 1,
    dtype: Any = None,
) -> Covariance[T]:
    """Covariance matrix and mean of the patches that a convolution sees in ``x``.

    The covariance of ``F.unfold(x, ...)`` with every output position of every image as a sample.
    The unfolded matrix is never built: memory is that of the result and one chunk.

    Args:
        x: ``[N, C, H, W]`` or ``[N, C, L]``; dtypes and strides as in ``covariance``.
        kernel_size: of the convolution: an int, or one value for each spatial dimension.
        stride: likewise.
        padding: likewise; the padding counts as zeros.
        dilation: likewise.
        correction: as in ``covariance``.
        dtype: as in ``covariance``.

    Returns:
        ``covariance`` ``[C*kh*kw, C*kh*kw]`` and ``mean`` ``[C*kh*kw]``, variables in the order
        (channel, kernel row, kernel column) of ``F.unfold``.

    Raises:
        ValueError: as ``covariance``; or a kernel that does not fit into the padded input.
        TypeError: as ``covariance``.
        RuntimeError: as ``cross_covariance``.
    """
    args = (*_geometry(x, kernel_size, stride, padding, dilation), correction, dtype)
    if isinstance(x, torch.Tensor):
        refuse_grad("patch_covariance", x=x)
        return Covariance(*_patch_covariance(x, *args))
    return Covariance(*core.patch_covariance(x, *args))


def patch_cross_covariance(
    x: T,
    y: T,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    correction: int = 1,
    dtype: Any = None,
) -> CrossCovariance[T]:
    """Covariances between the patches of ``x`` and the channels of ``y`` at the output positions.

    Args:
        x: as in ``patch_covariance``.
        y: ``[N, Cy, Hout, Wout]`` (or ``[N, Cy, Lout]``) of the dtype of ``x``, where a convolution
            with this kernel, stride, padding and dilation makes ``Hout`` x ``Wout`` of ``x``.
        kernel_size: as in ``patch_covariance``.
        stride: as in ``patch_covariance``.
        padding: as in ``patch_covariance``.
        dilation: as in ``patch_covariance``.
        correction: as in ``covariance``.
        dtype: as in ``covariance``.

    Returns:
        ``covariance`` ``[C*kh*kw, Cy]``, ``mean_x`` ``[C*kh*kw]`` and ``mean_y`` ``[Cy]``.

    Raises:
        ValueError: as ``patch_covariance``; or a shape of ``y`` that is not the output's.
        TypeError: as ``cross_covariance``.
        RuntimeError: as ``cross_covariance``.
    """
    args = (*_geometry(x, kernel_size, stride, padding, dilation), correction, dtype)
    if isinstance(x, torch.Tensor):
        refuse_grad("patch_cross_covariance", x=x, y=y)
        return CrossCovariance(*_patch_cross_covariance(x, y, *args))
    return CrossCovariance(*core.patch_cross_covariance(x, y, *args))


def _geometry(x: Any, *values: int | Sequence[int]) -> list[list[int]]:
    spatial = max(getattr(x, "ndim", 0) - 2, 0)
    return [[v] * spatial if isinstance(v, int) else list(v) for v in values]


class _Covariance(torch.autograd.Function):
    """Taken only where a gradient is wanted, see ``records_gradient``."""

    @staticmethod
    def forward(
        x: torch.Tensor, channel_dim: int, batch_dims: int, correction: int, dtype: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cov, mean = _covariance(x, channel_dim, batch_dims, correction, dtype)
        return cov, mean

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.channel_dim, ctx.batch_dims, ctx.correction, _ = inputs
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, grad_cov: torch.Tensor, grad_mean: torch.Tensor) -> Any:
        # d cov_ij / d x_ki = (x_kj - mean_j) / (n - correction), the means' own part summing to
        # zero; plain torch operations, so that the gradient can be differentiated in turn.
        x, mean = ctx.saved_tensors
        samples = x.movedim(ctx.channel_dim, -1)
        rows = samples.flatten(ctx.batch_dims, -2)
        n = rows.shape[-2]
        deviations = rows.to(mean.dtype) - mean.unsqueeze(-2)
        symmetric = (grad_cov + grad_cov.mT) / (n - ctx.correction)
        grad = deviations @ symmetric + grad_mean.unsqueeze(-2) / n
        return (
            grad.to(x.dtype).reshape(samples.shape).movedim(-1, ctx.channel_dim),
            None,
            None,
            None,
            None,
        )


_with_gradient: Callable[..., Any] = _Covariance.apply


def _result_dtype(x: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@register_fake("covariance")
def _fake_covariance(
    x: torch.Tensor, channel_dim: int, batch_dims: int, correction: int, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels = x.shape[:batch_dims], x.shape[channel_dim]
    dtype = _result_dtype(x, dtype)
    return (
        x.new_empty((*batch, channels, channels), dtype=dtype),
        x.new_empty((*batch, channels), dtype=dtype),
    )


@register_fake("cross_covariance")
def _fake_cross_covariance(
    x: torch.Tensor,
    y: torch.Tensor,
    channel_dim: int,
    batch_dims: int,
    correction: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, rows, columns = x.shape[:batch_dims], x.shape[channel_dim], y.shape[channel_dim]
    dtype = _result_dtype(x, dtype)
    return (
        x.new_empty((*batch, rows, columns), dtype=dtype),
        x.new_empty((*batch, rows), dtype=dtype),
        x.new_empty((*batch, columns), dtype=dtype),
    )


@register_fake("patch_covariance")
def _fake_patch_covariance(
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    correction: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    variables = x.shape[1]
    for size in kernel_size:
        variables *= size
    dtype = _result_dtype(x, dtype)
    return x.new_empty((variables, variables), dtype=dtype), x.new_empty((variables,), dtype=dtype)


@register_fake("patch_cross_covariance")
def _fake_patch_cross_covariance(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    correction: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    variables = x.shape[1]
    for size in kernel_size:
        variables *= size
    dtype = _result_dtype(x, dtype)
    return (
        x.new_empty((variables, y.shape[1]), dtype=dtype),
        x.new_empty((variables,), dtype=dtype),
        x.new_empty((y.shape[1],), dtype=dtype),
    )
