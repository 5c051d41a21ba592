"""Gaussian information between variables of a covariance matrix, in nats."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
import torch

from infoslice.ops._native import T, core, refuse_grad, register_fake, torch_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Indices = Sequence[int] | NDArray[np.integer[Any]] | torch.Tensor

__all__ = ["Information", "conditional_mi", "gaussian_mi", "marginal_mi", "pairwise_mi"]

_gaussian_mi = torch_op("gaussian_mi")
_marginal_mi = torch_op("marginal_mi")
_conditional_mi = torch_op("conditional_mi")
_pairwise_mi = torch_op("pairwise_mi")

if TYPE_CHECKING:

    class Information(NamedTuple, Generic[T]):
        """``nats`` in the type and dtype of the covariance, ``info`` int32 of the same shape."""

        nats: T
        info: T

else:  # Python 3.10 has no generic named tuples

    class Information(NamedTuple):
        """``nats`` in the type and dtype of the covariance, ``info`` int32 of the same shape."""

        nats: Any
        info: Any


def gaussian_mi(cov: T, x: Indices, y: Indices, *, noise_variance: float = 0.0) -> Information[T]:
    """Mutual information ``I(X; Y)`` of jointly Gaussian variables, all of x against all of y.

    ``1/2 (log det S_x + log det S_y - log det S_xy)`` with S the covariance and ``noise_variance``
    added to the diagonal of its y block: Y = f(X) + N, N ~ N(0, noise_variance I). The noise is
    part of the definition, a deterministic Y would have infinite information.

    Args:
        cov: [..., n, n] float32 or float64, any strides. Only the lower triangle is read.
        x: indices of the variables X into the last two axes, none repeated, none in y.
        y: indices of the variables Y.
        noise_variance: variance of N, finite and >= 0.

    Returns:
        ``nats`` [...], computed in double, never negative, and ``info`` [...]: 0, or k > 0 where,
        to working precision, the k-th variable in the order y, x is a linear function of those
        before it (so that the information is infinite or a side is redundant), or where S is
        not a covariance (indefinite, NaN, Inf); nats is NaN then. A variable of zero variance is a
        constant and left out: it carries no information.

    Raises:
        ValueError: ``cov`` not square or n = 0; indices out of range, repeated, shared or missing;
            a negative or infinite noise variance.
        TypeError: another dtype of ``cov``; indices that are not integers.
        RuntimeError: a tensor that requires grad; a CUDA tensor and no CUDA kernels built, or
            another device.

    Source: Cover & Thomas, Elements of Information Theory, 2nd ed., 8.4-8.5.
    """
    return _dispatch("gaussian_mi", _gaussian_mi, cov, x, y, float(noise_variance))


def marginal_mi(
    cov: T, x: Indices, y: Indices, *, group_size: int = 1, noise_variance: float = 0.0
) -> Information[T]:
    """``I(X_g; Y)`` for every group g of variables of x, by one factorisation of the y block.

    Args:
        cov: [..., n, n] float32 or float64, any strides. Only the lower triangle is read.
        x: indices of the variables X; each run of ``group_size`` entries is one group.
        y: indices of the variables Y, disjoint from x.
        group_size: entries of x per group, a divisor of their number.
        noise_variance: variance added to the diagonal of the y block, see ``gaussian_mi``.

    Returns:
        ``nats`` [..., G], computed in double, never negative, and ``info`` [..., G]: 0, or k > 0
        as in ``gaussian_mi``, in the order y, X_g. Variables of zero variance are left out.

    Raises:
        ValueError: as ``gaussian_mi``, or ``group_size`` does not divide the number of x.
        TypeError: another dtype of ``cov``; indices that are not integers.
        RuntimeError: a tensor that requires grad; a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    return _dispatch("marginal_mi", _marginal_mi, cov, x, y, group_size, float(noise_variance))


def conditional_mi(
    cov: T, x: Indices, y: Indices, *, group_size: int = 1, noise_variance: float = 0.0
) -> Information[T]:
    """``I(X_g; Y | X_-g)`` for every group g: what Y loses if only X_g is taken away.

    ``1/2 (log det (S^-1)_gg - log det (S_x^-1)_gg)``, S the joint covariance of x and y: one
    factorisation for all groups.

    Args:
        cov: [..., n, n] float32 or float64, any strides. Only the lower triangle is read.
        x: indices of the variables X; each run of ``group_size`` entries is one group.
        y: indices of the variables Y, disjoint from x.
        group_size: entries of x per group, a divisor of their number.
        noise_variance: variance added to the diagonal of the y block, see ``gaussian_mi``.

    Returns:
        ``nats`` [..., G], computed in double, and ``info`` [..., G]: 0, or k > 0 where, to working
        precision, the k-th variable in the order x, y is a linear function of those before it or S
        is not a covariance; all groups fail alike and nats is NaN. A variable of zero variance
        counts as such a function. (k beyond x and y: the precision block of a group lost its
        definiteness by rounding.)

    Raises:
        ValueError: as ``gaussian_mi``, or ``group_size`` does not divide the number of x.
        TypeError: another dtype of ``cov``; indices that are not integers.
        RuntimeError: a tensor that requires grad; a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    return _dispatch(
        "conditional_mi", _conditional_mi, cov, x, y, group_size, float(noise_variance)
    )


def pairwise_mi(
    cov: T, x: Indices, y: Indices, *, group_size: int = 1, noise_variance: float = 0.0
) -> Information[T]:
    """``sum_j I(X_g; Y_j)`` for every group g: each variable of y on its own.

    Args:
        cov: [..., n, n] float32 or float64, any strides. Only the lower triangle is read.
        x: indices of the variables X; each run of ``group_size`` entries is one group.
        y: indices of the variables Y, disjoint from x.
        group_size: entries of x per group, a divisor of their number.
        noise_variance: variance added to the diagonal of the y block, see ``gaussian_mi``.

    Returns:
        ``nats`` [..., G], computed in double, never negative, and ``info`` [..., G]: 0, or k > 0
        where, to working precision, the k-th variable in the order X_g, y is a linear function of
        X_g (of those before it, within X_g) or S is not a covariance; nats is NaN then. Variables
        of zero variance are left out.

    Raises:
        ValueError: as ``gaussian_mi``, or ``group_size`` does not divide the number of x.
        TypeError: another dtype of ``cov``; indices that are not integers.
        RuntimeError: a tensor that requires grad; a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    return _dispatch("pairwise_mi", _pairwise_mi, cov, x, y, group_size, float(noise_variance))


def _dispatch(name: str, op: Any, cov: T, x: Indices, y: Indices, *options: Any) -> Information[T]:
    xs, ys = _integers(name, "x", x), _integers(name, "y", y)
    if isinstance(cov, torch.Tensor):
        refuse_grad(name, cov=cov)
        # The CPU host function takes any strides by itself.
        return Information(*op(cov.contiguous() if cov.is_cuda else cov, xs, ys, *options))
    return Information(*getattr(core, name)(cov, xs, ys, *options))


def _integers(op: str, argument: str, indices: Indices) -> list[int]:
    if isinstance(indices, (np.ndarray, torch.Tensor)):
        # A mask would otherwise turn into the indices 0 and 1.
        if indices.ndim != 1 or indices.dtype in (bool, torch.bool):
            raise TypeError(
                f"{op}: {argument}: expected a list of integers or a 1-d integer array, got "
                f"{indices.ndim}-d {indices.dtype}"
            )
        return _integers(op, argument, indices.tolist())
    try:
        return [index(i) for i in indices]
    except TypeError:
        raise TypeError(
            f"{op}: {argument}: expected a list of integers or a 1-d integer array, got {indices!r}"
        ) from None


@register_fake("gaussian_mi")
def _fake_whole(
    cov: torch.Tensor, x: list[int], y: list[int], noise_variance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(cov, cov.shape[:-2])


def _fake_groups(
    cov: torch.Tensor, x: list[int], y: list[int], group_size: int, noise_variance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(cov, (*cov.shape[:-2], len(x) // group_size))


for _name in ("marginal_mi", "conditional_mi", "pairwise_mi"):
    register_fake(_name)(_fake_groups)


def _empty(cov: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    nats = torch.empty(shape, dtype=cov.dtype, device=cov.device)
    return nats, torch.empty(shape, dtype=torch.int32, device=cov.device)
