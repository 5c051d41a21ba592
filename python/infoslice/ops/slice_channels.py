"""``slice_channels``: the kept channels of many tensors in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infoslice.ops._native import T, core, register_fake, torch_op

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["slice_channels"]

_slice_channels = torch_op("slice_channels")


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
            the axis. May be empty arrays.

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
    tensors = list(tensors)
    if len(keep) != len(dims) or any(len(k) != len(d) for k, d in zip(keep, dims, strict=True)):
        raise ValueError(
            "slice_channels: keep: expected one index array for each axis in dims, got "
            f"{[len(k) for k in keep]} for {[len(d) for d in dims]}"
        )
    counts = [len(axes) for axes in dims]
    axes = [int(axis) for axes in dims for axis in axes]
    # Coupled tensors are cut by the same arrays: each is handed over and checked once.
    indices = {id(index): index for arrays in keep for index in arrays}
    number = {key: i for i, key in enumerate(indices)}
    choice = [number[id(index)] for arrays in keep for index in arrays]
    if tensors and isinstance(tensors[0], torch.Tensor):
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(
                    "slice_channels: tensors: expected only torch tensors, got "
                    f"{type(tensor).__name__}"
                )
        lists = [_as_tensor(index) for index in indices.values()]
        with torch.no_grad():
            out: list[T] = _slice_channels(tensors, counts, axes, lists, choice)
        return out
    arrays = [np.asarray(index) for index in indices.values()]
    results: list[T] = core.slice_channels(tensors, counts, axes, arrays, choice)
    return results


def _as_tensor(index: Any) -> torch.Tensor:
    if isinstance(index, torch.Tensor):
        return index.contiguous()
    return torch.from_numpy(np.ascontiguousarray(index))


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
