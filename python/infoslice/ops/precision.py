"""``precision_diagonal`` and ``precision_blocks``: parts of an inverse that is never formed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch

from infoslice.ops._native import T, contiguous_on_cuda, core, refuse_grad, register_fake, torch_op

__all__ = [
    "PrecisionBlocks",
    "PrecisionDiagonal",
    "precision_blocks",
    "precision_diagonal",
]

_precision_diagonal = torch_op("precision_diagonal")
_precision_blocks = torch_op("precision_blocks")

if TYPE_CHECKING:

    class PrecisionDiagonal(NamedTuple, Generic[T]):
        """``diagonal`` [..., d] in the type and dtype of the input, ``info`` int32 [...]."""

        diagonal: T
        info: T

    class PrecisionBlocks(NamedTuple, Generic[T]):
        """``blocks`` [..., d / b, b, b] as the input, ``info`` int32 [...]."""

        blocks: T
        info: T

else:  # Python 3.10 has no generic named tuples

    class PrecisionDiagonal(NamedTuple):
        """``diagonal`` [..., d] in the type and dtype of the input, ``info`` int32 [...]."""

        diagonal: Any
        info: Any

    class PrecisionBlocks(NamedTuple):
        """``blocks`` [..., d / b, b, b] as the input, ``info`` int32 [...]."""

        blocks: Any
        info: Any


def precision_diagonal(a: T) -> PrecisionDiagonal[T]:
    """Diagonal of the inverse of symmetric positive definite matrices.

    For a covariance, ``1 / diagonal[i]`` is the variance of variable i that all the others leave
    unexplained.

    Args:
        a: [..., d, d] float32 or float64, d >= 1, any strides. Only the lower triangle is read.

    Returns:
        ``diagonal`` [..., d], computed in double: (a^-1)_ii = sum_j W_ji^2 with W the inverse of
        the Cholesky factor, and ``info`` [...] as ``cholesky`` gives it, or d + 1 where a result is
        beyond the range of the dtype; NaN where info is not 0.

    Raises:
        ValueError: not square, fewer than two dimensions, or d = 0.
        TypeError: not an array or tensor, or of another dtype.
        RuntimeError: a tensor that requires grad, a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    if isinstance(a, torch.Tensor):
        refuse_grad("precision_diagonal", a=a)
        return PrecisionDiagonal(*_precision_diagonal(contiguous_on_cuda(a)))
    return PrecisionDiagonal(*core.precision_diagonal(a))


def precision_blocks(a: T, block_size: int) -> PrecisionBlocks[T]:
    """Diagonal blocks of the inverse of symmetric positive definite matrices.

    The inverse of block g is the covariance of the variables g b .. g b + b - 1 that all the others
    leave unexplained.

    Args:
        a: [..., d, d] float32 or float64, d >= 1, any strides. Only the lower triangle is read.
        block_size: b, a divisor of d.

    Returns:
        ``blocks`` [..., d / b, b, b], symmetric, computed in double, and ``info`` [...] as
        ``cholesky`` gives it, or d + 1 where a result is beyond the range of the dtype; NaN where
        info is not 0.

    Raises:
        ValueError: not square, fewer than two dimensions, d = 0, or b does not divide d.
        TypeError: not an array or tensor, or of another dtype.
        RuntimeError: a tensor that requires grad, a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    if isinstance(a, torch.Tensor):
        refuse_grad("precision_blocks", a=a)
        return PrecisionBlocks(*_precision_blocks(contiguous_on_cuda(a), block_size))
    return PrecisionBlocks(*core.precision_blocks(a, block_size))


@register_fake("precision_diagonal")
def _fake_diagonal(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    diagonal = torch.empty(a.shape[:-1], dtype=a.dtype, device=a.device)
    return diagonal, torch.empty(a.shape[:-2], dtype=torch.int32, device=a.device)


@register_fake("precision_blocks")
def _fake_blocks(a: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*a.shape[:-2], a.shape[-1] // block_size, block_size, block_size)
    blocks = torch.empty(shape, dtype=a.dtype, device=a.device)
    return blocks, torch.empty(a.shape[:-2], dtype=torch.int32, device=a.device)
