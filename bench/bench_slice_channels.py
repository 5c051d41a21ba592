"""slice_channels against torch.index_select, indexing and numpy.take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoslice import ops

# shape, axes, dtype, how many such tensors
CASES = {
    "slice [512, 512, 3, 3] float32, axis 0": ((512, 512, 3, 3), (0,), torch.float32, 1),
    "slice [512, 512, 3, 3] float32, axis 1": ((512, 512, 3, 3), (1,), torch.float32, 1),
    "slice [512, 512, 3, 3] float32, axes 0 and 1": ((512, 512, 3, 3), (0, 1), torch.float32, 1),
    "slice [2048, 2048] float32, axis 0": ((2048, 2048), (0,), torch.float32, 1),
    "slice [2048, 2048] float32, axis 1": ((2048, 2048), (1,), torch.float32, 1),
    "slice [2048, 2048] bfloat16, axis 1": ((2048, 2048), (1,), torch.bfloat16, 1),
    "slice 1000 x [512] float32": ((512,), (0,), torch.float32, 1000),
}


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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name", ["infoslice", "torch.index_select", "torch indexing", "numpy.take"]
)
def test_slice_channels(race, case, name):
    shape, axes, dtype, count = CASES[case]
    tensors = [torch.randn(shape).to(dtype) for _ in range(count)]
    keep = tuple(torch.randperm(shape[a])[: shape[a] // 2].sort().values for a in axes)
    arrays = [
        t.view(torch.int16).numpy() if dtype == torch.bfloat16 else t.numpy() for t in tensors
    ]
    indices = tuple(index.numpy() for index in keep)
    functions = {
        "infoslice": lambda: ops.slice_channels(tensors, [axes] * count, [keep] * count),
        "torch.index_select": lambda: [by_index_select(t, axes, keep) for t in tensors],
        "torch indexing": lambda: [by_indexing(t, axes, keep) for t in tensors],
        "numpy.take": lambda: [by_take(a, axes, indices) for a in arrays],
    }
    expected = by_index_select(tensors[0], axes, keep)
    if name == "numpy.take" and dtype == torch.bfloat16:
        expected = expected.view(torch.int16)
    kept = count * expected.numel() * expected.element_size()
    race(case, name, functions[name], expected.double(), bound=0, bytes=2 * kept)
