"""``cholesky`` and ``logdet``: batched, with one verdict per matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch

from infoslice.ops._native import T, contiguous_on_cuda, core, refuse_grad, register_fake, torch_op

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cholesky", "LogDet", "cholesky", "logdet", "submatrix_logdet"]

_cholesky = torch_op("cholesky")
_logdet = torch_op("logdet")
_submatrix_logdet = torch_op("submatrix_logdet")

if TYPE_CHECKING:

    class Cholesky(NamedTuple, Generic[T]):
        """``factor`` [..., d, d] in the type and dtype of the input, ``info`` int32 [...]."""

        factor: T
        info: T

    class LogDet(NamedTuple, Generic[T]):
        """``logdet`` [...] in the type and dtype of the input, ``info`` int32 [...]."""

        logdet: T
        info: T

else:  # Python 3.10 has no generic named tuples

    class Cholesky(NamedTuple):
        """``factor`` [..., d, d] in the type and dtype of the input, ``info`` int32 [...]."""

        factor: Any
        info: Any

    class LogDet(NamedTuple):
        """``logdet`` [...] in the type and dtype of the input, ``info`` int32 [...]."""

        logdet: Any
        info: Any


def cholesky(a: T) -> Cholesky[T]:
    """Factor symmetric positive definite matrices: ``a = factor @ factor.T``.

    Args:
        a: [..., d, d] float32 or float64, d >= 1, any strides. Only the lower triangle is read.

    Returns:
        ``factor`` [..., d, d], lower triangular with zeros above the diagonal, and ``info`` [...]:
        0, or k > 0 where the leading minor of order k is not positive definite (NaN and Inf end
        here too). Then the lower triangle of that factor is NaN; other matrices are not affected.

    The gradient is that of a symmetric ``a``: it is symmetric, as ``torch.linalg.cholesky``'s.

    Raises:
        ValueError: not square, fewer than two dimensions, or d = 0.
        TypeError: not an array or tensor, or of another dtype.
        RuntimeError: a CUDA tensor and no CUDA kernels built, or another device.
    """
    if isinstance(a, torch.Tensor):
        if a.requires_grad and torch.is_grad_enabled():
            return Cholesky(*_cholesky_with_gradient(a))
        return Cholesky(*_cholesky(contiguous_on_cuda(a)))
    return Cholesky(*core.cholesky(a))


def logdet(a: T) -> LogDet[T]:
    """Natural logarithm of the determinant of symmetric positive definite matrices.

    Args:
        a: [..., d, d] float32 or float64, d >= 1, any strides. Only the lower triangle is read.

    Returns:
        ``logdet`` [...] = 2 sum_i log L_ii with the Cholesky factor L, and ``info`` [...] as
        ``cholesky`` gives it; the log-determinant is NaN where info is not 0. It neither overflows
        nor underflows where the determinant would.

    The gradient is ``inverse(a)`` (times the incoming one), that of a symmetric ``a``.

    Raises:
        ValueError: not square, fewer than two dimensions, or d = 0.
        TypeError: not an array or tensor, or of another dtype.
        RuntimeError: a CUDA tensor and no CUDA kernels built, or another device.
    """
    if isinstance(a, torch.Tensor):
        if a.requires_grad and torch.is_grad_enabled():
            return LogDet(*_logdet_with_gradient(a))
        return LogDet(*_logdet(contiguous_on_cuda(a)))
    return LogDet(*core.logdet(a))


def submatrix_logdet(cov: T, index: T) -> LogDet[T]:
    """Log-determinants of many principal submatrices of one matrix: of sets of its variables.

    The same as ``logdet(cov[index[..., :, None], index[..., None, :]])`` for a symmetric ``cov``,
    but the submatrices are never copied out: the entropies of all these sets of variables, less a
    constant, are half of the result.

    Args:
        cov: [n, n] float32 or float64, n >= 1, any strides. Only the lower triangle is read.
        index: [..., k] int64 in [0, n), k >= 1, any strides: each row one set, in any order.

    Returns:
        ``logdet`` [...] in the dtype of ``cov``, and ``info`` [...] as ``logdet`` gives it, in the
        order of the set. A variable that stands in a set twice makes it singular: ``info`` is its
        second place, counted from 1, or an earlier one. On CUDA ``info`` is -1 and ``logdet`` NaN
        for a set with an index out of range: to raise would be to wait for the device.

    Raises:
        ValueError: ``cov`` not one square matrix; k = 0; on the CPU, an index out of range, with
            its place.
        TypeError: not arrays or tensors, or of another dtype.
        RuntimeError: a tensor that requires grad, a CUDA tensor and no CUDA kernels built, another
            device, or tensors on several.
    """
    if isinstance(cov, torch.Tensor):
        refuse_grad("submatrix_logdet", cov=cov)
        return LogDet(*_submatrix_logdet(contiguous_on_cuda(cov), contiguous_on_cuda(index)))
    return LogDet(*core.submatrix_logdet(cov, index))


@register_fake("cholesky")
def _fake_cholesky(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    factor = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return factor, torch.empty(a.shape[:-2], dtype=torch.int32, device=a.device)


@register_fake("logdet")
def _fake_logdet(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logdet = torch.empty(a.shape[:-2], dtype=a.dtype, device=a.device)
    return logdet, torch.empty(a.shape[:-2], dtype=torch.int32, device=a.device)


@register_fake("submatrix_logdet")
def _fake_submatrix_logdet(
    cov: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logdet = torch.empty(index.shape[:-1], dtype=cov.dtype, device=cov.device)
    return logdet, torch.empty(index.shape[:-1], dtype=torch.int32, device=cov.device)


class _Cholesky(torch.autograd.Function):
    """Taken only where a gradient is wanted: the plain operator is several microseconds cheaper."""

    @staticmethod
    def forward(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor, info = _cholesky(contiguous_on_cuda(a))
        return factor, info

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[0])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad_factor: torch.Tensor, _: Any) -> torch.Tensor:
        # dA = L^-T phi(L' dL) L^-1, made symmetric; phi keeps the lower triangle and half the
        # diagonal. Source: Murray, "Differentiation of the Cholesky decomposition", 2016, eq. 10.
        (factor,) = ctx.saved_tensors
        phi = (factor.mT @ grad_factor).tril()
        phi = phi - 0.5 * torch.diag_embed(phi.diagonal(dim1=-2, dim2=-1))
        left = torch.linalg.solve_triangular(factor.mT, phi, upper=True)
        grad: torch.Tensor = torch.linalg.solve_triangular(factor, left, upper=False, left=False)
        return 0.5 * (grad + grad.mT)


class _LogDet(torch.autograd.Function):
    @staticmethod
    def forward(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, info = _logdet(contiguous_on_cuda(a))
        return value, info

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad_logdet: torch.Tensor, _: Any) -> torch.Tensor:
        # By the differentiable cholesky() above, so that there is a second derivative too.
        (a,) = ctx.saved_tensors
        inverse: torch.Tensor = torch.cholesky_inverse(cholesky(a).factor)
        return grad_logdet[..., None, None] * inverse


_cholesky_with_gradient: Callable[..., Any] = _Cholesky.apply
_logdet_with_gradient: Callable[..., Any] = _LogDet.apply
