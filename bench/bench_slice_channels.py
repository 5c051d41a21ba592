"""slice_channels against torch.index_select, indexing and numpy.take."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from bench.contest import OURS, Case, Contest, tests_of
from infoslice import ops

SELECT, INDEXING, TAKE = "torch.index_select", "torch indexing", "numpy.take"
F32, BF16 = torch.float32, torch.bfloat16


def by_index_select(tensor, axes, keep):
    for axis, index in zip(axes, keep, strict=True):
        tensor = tensor.index_select(axis, index)
    return tensor


def by_indexing(tensor, axes, keep):
    for axis, index in zip(axes, keep, strict=True):
        tensor = tensor[(slice(None),) * axis + (index,)]
    return tensor


def by_take(array, axes, keep):
    for axis, index in zip(axes, keep, strict=True):
        array = np.take(array, index, axis)
    return array


def contest(shape: tuple[int, ...], axes: tuple[int, ...], dtype: torch.dtype, count: int) -> Contest:
    tensors = [torch.randn(shape).to(dtype) for _ in range(count)]
    keep = tuple(torch.randperm(shape[a])[: shape[a] // 2].sort().values for a in axes)
    arrays = [t.view(torch.int16).numpy() if dtype == BF16 else t.numpy() for t in tensors]
    indices = tuple(index.numpy() for index in keep)
    bits = torch.int16 if dtype == BF16 else torch.int32
    entrants: dict[str, Any] = {
        OURS: lambda: ops.slice_channels(tensors, [axes] * count, [keep] * count)[0].view(bits),
        SELECT: lambda: [by_index_select(t, axes, keep) for t in tensors][0].view(bits),
        INDEXING: lambda: [by_indexing(t, axes, keep) for t in tensors][0].view(bits),
        TAKE: lambda: torch.from_numpy([by_take(a, axes, indices) for a in arrays][0]).view(bits),
    }
    return Contest(entrants, by_index_select(tensors[0], axes, keep).view(bits).double(), 0)
