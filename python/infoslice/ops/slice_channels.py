"""``slice_channels``: the kept channels of many tensors in one call, new or in place."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infoslice.ops._native import T, core, register_fake, torch_op

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["slice_channels", "slice_channels_"]

_slice_channels = torch_op("slice_channels")
_slice_channels_ = torch_op("slice_channels_")


def slice_channels(
    tensors: Sequence[T],
    dims: Sequence[Sequence[int]],
    keep: Sequence[Sequence[Any]],
) -> list[T]:
    """Keep the named indices of the named axes of many tensors, all axes of a tensor in one pass.

    Args:
        tensors: NumPy arrays or torch tensors of any dtype, shape and strides.
        dims: for each tensor the axes to cut (negative ones count from the end); may be empty.
        keep: for each tensor one index array per axis in ``dims``: int64, sorted, unique, within
            the axis. May be empty arrays. They are read on the host: CUDA tensors are copied there,
            which waits for their stream, so give CPU tensors to go on without waiting, and under
            the capture of a CUDA graph, which keeps the indices it was captured with.

    Returns:
        New tensors of the same dtype and device that own their memory: contiguous, or
        ``channels_last`` where the source is. They carry no gradient: the values are cut, whether
        or not the sources require grad. ``out[i][j0, j1, ...] = tensors[i][k0[j0], k1[j1], ...]``.

    Raises:
        ValueError: an axis out of range or named twice; keep indices out of range, unsorted or
            repeated; lists of unequal lengths. The message names the tensor by its index.
        TypeError: keep indices that are not int64; mixed NumPy arrays and torch tensors.
        RuntimeError: tensors on a device for which there is no kernel.
    """
    given: list[Any] = list(tensors)
    if _are_torch(given, "slice_channels"):
        with torch.no_grad():
            out: list[T] = _slice_channels(*_arguments(given, dims, keep, _as_tensor))
        return out
    results: list[T] = core.slice_channels(*_arguments(given, dims, keep, np.asarray))
    return results


def slice_channels_(
    tensors: Sequence[T],
    dims: Sequence[Sequence[int]],
    keep: Sequence[Sequence[Any]],
) -> list[T]:
    """``slice_channels`` in place: the kept values move to the front of each tensor's own memory.

    On the CPU nothing is allocated, and large tensors take a fraction of the time, since most of
    the time of a new tensor goes into its fresh pages; on CUDA 32 MiB of scratch memory do for any
    size. Everything is checked before the first write.

    A torch tensor given becomes the smaller tensor: the same object (a ``Parameter`` stays one,
    with its ``requires_grad``), the same address, the new shape, contiguous or ``channels_last``
    as before. A NumPy array keeps its shape; the result is a view on its front.

    The memory behind the result is not given back: it stays part of the storage until
    ``tensor.data = tensor.data.clone()``, and ``torch.save`` writes it too. ``grad`` and the state
    of optimizers are left as they are. As with everything in place, whoever else looks at the
    memory sees it change, but not its shape: give the parameters themselves, not the detached ones
    of a ``state_dict``.

    Args:
        tensors: as of ``slice_channels``; contiguous or ``channels_last`` torch tensors that are no
            views, or NumPy arrays that own their memory, contiguous and writeable. No two may
            share memory.
        dims: as of ``slice_channels``.
        keep: as of ``slice_channels``.

    Returns:
        The torch tensors given, or views on the NumPy arrays given.

    Raises:
        ValueError: as of ``slice_channels``; tensors that cannot be cut in place (see Args).
        TypeError: as of ``slice_channels``.
        RuntimeError: as of ``slice_channels``; a call inside ``torch.compile``, which cannot follow
            a tensor that changes its shape.
    """
    given: list[Any] = list(tensors)
    if _are_torch(given, "slice_channels_"):
        if any(map(torch.Tensor._is_view, given)):
            number = [tensor._is_view() for tensor in given].index(True)
            raise ValueError(
                f"slice_channels_: tensors[{number}]: expected a tensor with memory of its own, "
                "got a view"
            )
        with torch.no_grad():
            _slice_channels_(*_arguments(given, dims, keep, _as_tensor, "slice_channels_"))
        torch.autograd.graph.increment_version(given)
        return given
    for number, array in enumerate(given):
        if isinstance(array, np.ndarray) and not (
            array.flags.owndata and array.flags.writeable and array.dtype.isnative
        ):
            raise ValueError(
                f"slice_channels_: tensors[{number}]: expected a plain array that owns its memory, "
                f"got one with owndata={array.flags.owndata}, writeable={array.flags.writeable}, "
                f"native byte order={array.dtype.isnative}"
            )
    core.slice_channels_(*_arguments(given, dims, keep, np.asarray, "slice_channels_"))
    results = []
    for array, axes, arrays in zip(given, dims, keep, strict=True):
        shape = list(array.shape)
        for axis, kept in zip(axes, arrays, strict=True):
            shape[axis] = len(kept)
        results.append(array.reshape(-1)[: math.prod(shape)].reshape(shape))
    return results


def _are_torch(tensors: list[Any], op: str) -> bool:
    """Whether these are torch tensors, by the first; then all must be."""
    if not tensors or not isinstance(tensors[0], torch.Tensor):
        return False
    for kind in dict.fromkeys(map(type, tensors)):
        if not issubclass(kind, torch.Tensor):
            raise TypeError(f"{op}: tensors: expected only torch tensors, got {kind.__name__}")
    return True


def _arguments(
    tensors: list[Any],
    dims: Sequence[Sequence[int]],
    keep: Sequence[Sequence[Any]],
    convert: Callable[[Any], Any],
    op: str = "slice_channels",
) -> tuple[list[Any], list[int], list[int], list[Any], list[int]]:
    """The arguments of the native op."""
    counts = list(map(len, dims))
    if list(map(len, keep)) != counts:
        raise ValueError(
            f"{op}: keep: expected one index array for each axis in dims, got "
            f"{[len(k) for k in keep]} for {counts}"
        )
    axes = list(chain.from_iterable(dims))
    # Coupled tensors are cut by the same arrays: each is handed over and checked once.
    arrays = list(chain.from_iterable(keep))
    ids = list(map(id, arrays))
    distinct = dict(zip(ids, arrays, strict=True))
    number = dict(zip(distinct, range(len(distinct)), strict=True))
    choice = list(map(number.__getitem__, ids))
    return tensors, counts, axes, list(map(convert, distinct.values())), choice


def _as_tensor(keep: Any) -> torch.Tensor:
    if isinstance(keep, torch.Tensor):
        return (keep.cpu() if keep.is_cuda else keep).contiguous()
    return torch.from_numpy(np.ascontiguousarray(keep))


@register_fake("slice_channels")
def _fake(
    tensors: list[torch.Tensor],
    axis_counts: list[int],
    axes: list[int],
    keep: list[torch.Tensor],
    choice: list[int],
) -> list[torch.Tensor]:
    results, at = [], 0
    for tensor, count in zip(tensors, axis_counts, strict=True):
        shape = list(tensor.shape)
        for axis, number in zip(axes[at : at + count], choice[at : at + count], strict=True):
            shape[axis] = keep[number].shape[0]
        at += count
        results.append(
            torch.empty(
                shape,
                dtype=tensor.dtype,
                device=tensor.device,
                memory_format=_memory_format(tensor),
            )
        )
    return results


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


@register_fake("slice_channels_")
def _fake_(
    tensors: list[torch.Tensor],
    axis_counts: list[int],
    axes: list[int],
    keep: list[torch.Tensor],
    choice: list[int],
) -> None:
    raise RuntimeError(
        "slice_channels_: tensors: expected tensors with memory, got ones of the meta device or "
        "under torch.compile, which cannot follow a tensor that changes its shape"
    )
