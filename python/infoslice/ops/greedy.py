"""Greedy choice of channels: forward selection, backward elimination, structured OBS.

On CUDA all steps are enqueued at once and nothing waits for the device: the results, ``info`` too,
are there when the stream has come to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch

from infoslice.ops._native import T, core, refuse_grad, register_fake, torch_op
from infoslice.ops.gaussian_mi import _integers

if TYPE_CHECKING:
    from infoslice.ops.gaussian_mi import Indices

__all__ = [
    "Elimination",
    "Selection",
    "backward_elimination",
    "forward_selection",
    "obs_elimination",
]

_forward_selection = torch_op("forward_selection")
_backward_elimination = torch_op("backward_elimination")
_obs_elimination = torch_op("obs_elimination")

if TYPE_CHECKING:

    class Selection(NamedTuple, Generic[T]):
        """``order`` int64 [count], ``gains`` float64 [count], ``info`` int32 []."""

        order: T
        gains: T
        info: T

    class Elimination(NamedTuple, Generic[T]):
        """``order`` int64 [count], ``losses`` float64 [count], ``info`` int32 []."""

        order: T
        losses: T
        info: T

else:  # Python 3.10 has no generic named tuples

    class Selection(NamedTuple):
        """``order`` int64 [count], ``gains`` float64 [count], ``info`` int32 []."""

        order: Any
        gains: Any
        info: Any

    class Elimination(NamedTuple):
        """``order`` int64 [count], ``losses`` float64 [count], ``info`` int32 []."""

        order: Any
        losses: Any
        info: Any


def forward_selection(
    cov: T,
    x: Indices,
    y: Indices,
    count: int,
    *,
    group_size: int = 1,
    start: Indices = (),
    noise_variance: float = 0.0,
) -> Selection[T]:
    """Adds groups of x one by one, always the one that tells most about Y given those before it.

    The gain of group g is ``I(X_g; Y + N | X_S)`` with S the groups that are in, N noise as in
    ``gaussian_mi``. Without y it is ``1/2 log det`` of the covariance of X_g given X_S: the entropy
    but for a constant (D-optimal design, the mode of a determinantal point process). Two pivoted
    Cholesky factorisations in lock-step, nothing is factored anew.

    Args:
        cov: [n, n] float32 or float64, any strides. Only the lower triangle is read.
        x: indices of the variables X, none repeated; each run of ``group_size`` entries is one
            group.
        y: indices of the variables Y, disjoint from x; may be empty.
        count: how many groups to add, 0 to those that are not in ``start``.
        group_size: entries of x per group, a divisor of their number.
        start: numbers of the groups that are in from the beginning.
        noise_variance: variance added to the diagonal of the y block, finite and >= 0.

    Returns:
        ``order`` [count], the numbers of the groups as they were added (the lowest of equals), and
        their ``gains`` in nats, computed in double; they add up to I(X_S; Y) less what ``start``
        tells. ``info``: 0, or k > 0 where step k was not possible (for k = 1 also the elimination
        of y or of ``start``): an information was infinite, or the matrix is not positive
        semidefinite, or not finite; order is -1 and gains are NaN from that step on. A variable
        that those before it determine to working precision (a repeated or constant one) gains 0,
        or, without y, -inf.

    Raises:
        ValueError: not one square matrix; indices out of range, repeated or in both lists; or
            another argument out of range.
        TypeError: another dtype of ``cov``; indices that are not integers.
        RuntimeError: a tensor that requires grad, on CUDA without CUDA kernels built, or on another
            device.
    """
    name = "forward_selection"
    args = (
        _integers(name, "x", x),
        _integers(name, "y", y),
        index(count),
        index(group_size),
        _integers(name, "start", start),
        float(noise_variance),
    )
    if isinstance(cov, torch.Tensor):
        refuse_grad(name, cov=cov)
        return Selection(*_forward_selection(cov, *args))
    return Selection(*core.forward_selection(cov, *args))


def backward_elimination(
    precision: Sequence[T],
    given_y: Sequence[T],
    count: int,
    *,
    group_size: int | Sequence[int] = 1,
    keep: Indices = (),
) -> Elimination[T]:
    """Removes channels one by one, always the one that tells least given those still there.

    The loss of channel c is ``I(X_c; Y | X_rest)``, summed over the layers that read the channels:
    ``sum_l 1/2 (log det (B_l)_cc - log det (A_l)_cc)`` with A_l the precision matrix of the inputs
    of layer l and B_l that of the inputs given its outputs. A channel that was removed is forgotten
    by both, ``P - P_:c P_cc^-1 P_c:``.

    Args:
        precision: A_l of each layer, [C r_l, C r_l] float32 or float64, all of one dtype, any
            strides. Only the lower triangle is read.
        given_y: B_l of each layer, the same shapes.
        count: how many channels to remove, 0 to those that are not in ``keep``.
        group_size: r_l, the variables of a channel (consecutive rows), for all layers or for each.
        keep: numbers of channels that are never removed.

    Returns:
        ``order`` [count], the channels as they were removed (the lowest of equals), and their
        ``losses`` in nats, computed in double. ``info``: 0, or k > 0 where step k was not possible,
        because a block is not positive definite to working precision; order is -1 and losses are
        NaN from that step on.

    Raises:
        ValueError: no layers; matrices that are not square or do not fit each other; or another
            argument out of range.
        TypeError: another dtype, or several; indices that are not integers.
        RuntimeError: a tensor that requires grad; tensors on several devices, on CUDA without CUDA
            kernels built, or on another device.
    """
    return _eliminate(
        "backward_elimination",
        _backward_elimination,
        {"precision": precision, "given_y": given_y},
        count,
        group_size,
        keep,
    )


def obs_elimination(
    precision: Sequence[T],
    gram: Sequence[T],
    count: int,
    *,
    group_size: int | Sequence[int] = 1,
    keep: Indices = (),
) -> Elimination[T]:
    """Removes channels one by one, always the one whose loss the others make up for best.

    Structured optimal brain surgeon: the loss of channel c is the squared error that its removal
    adds to the outputs ``Y = W X`` of the layers that read it when the rest of W is fitted anew,
    ``sum_l tr((P_l)_cc^-1 (W_l' W_l)_cc)`` with P_l the precision matrix of the inputs of layer l.
    ``W' M W`` in place of ``W' W`` weighs the outputs.

    Args:
        precision: P_l of each layer, [C r_l, C r_l] float32 or float64, all of one dtype, any
            strides. Only the lower triangle is read.
        gram: W_l' W_l of each layer, the same shapes.
        count: how many channels to remove, 0 to those that are not in ``keep``.
        group_size: r_l, the variables of a channel (consecutive rows), for all layers or for each.
        keep: numbers of channels that are never removed.

    Returns:
        ``order`` [count], the channels as they were removed (the lowest of equals), and their
        ``losses``, computed in double: they add up to the squared error of all removals. ``info``:
        as ``backward_elimination`` gives it.

    Raises:
        ValueError: no layers; matrices that are not square or do not fit each other; or another
            argument out of range.
        TypeError: another dtype, or several; indices that are not integers.
        RuntimeError: a tensor that requires grad; tensors on several devices, on CUDA without CUDA
            kernels built, or on another device.
    """
    return _eliminate(
        "obs_elimination",
        _obs_elimination,
        {"precision": precision, "gram": gram},
        count,
        group_size,
        keep,
    )


def _eliminate(
    name: str,
    op: Any,
    matrices: dict[str, Sequence[Any]],
    count: int,
    group_size: int | Sequence[int],
    keep: Indices,
) -> Elimination[Any]:
    first, second = (list(layers) for layers in matrices.values())
    sizes = (
        [index(r) for r in group_size]
        if isinstance(group_size, Sequence)
        else [index(group_size)] * len(first)
    )
    args = (first, second, index(count), sizes, _integers(name, "keep", keep))
    if any(isinstance(matrix, torch.Tensor) for matrix in (*first, *second)):
        for argument, layers in matrices.items():
            for matrix in layers:
                refuse_grad(name, **{argument: matrix})
        return Elimination(*op(*args))
    return Elimination(*getattr(core, name)(*args))


def _empty(like: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.empty(count, dtype=torch.int64, device=like.device),
        torch.empty(count, dtype=torch.float64, device=like.device),
        torch.empty((), dtype=torch.int32, device=like.device),
    )


@register_fake("forward_selection")
def _fake_forward(
    cov: torch.Tensor,
    x: list[int],
    y: list[int],
    count: int,
    group_size: int,
    start: list[int],
    noise_variance: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(cov, count)


@register_fake("backward_elimination")
def _fake_backward(
    precision: list[torch.Tensor],
    given_y: list[torch.Tensor],
    count: int,
    group_size: list[int],
    keep: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(precision[0], count)


@register_fake("obs_elimination")
def _fake_obs(
    precision: list[torch.Tensor],
    gram: list[torch.Tensor],
    count: int,
    group_size: list[int],
    keep: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(precision[0], count)
