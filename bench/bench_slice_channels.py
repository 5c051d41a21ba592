"""slice_channels against torch.index_select, indexing, numpy.take, Torch-Pruning and bare copies.

Results of less than 32 MB lie in memory that malloc recycles, so nobody pays for new pages there;
larger ones are fresh for everybody, and slice_channels_ needs none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice import ops

SELECT, INTO, INDEXING = "torch.index_select", "torch.index_select(out=)", "torch indexing"
TAKE, PRUNING, COPY = "numpy.take", "torch-pruning", "a new copy of as many bytes"
FOREACH = "torch._foreach_neg of the halves"
F32, BF16 = torch.float32, torch.bfloat16
Shape = tuple[int, ...]
BITS = {2: torch.int16, 4: torch.int32}


def half(shape: Shape, axes: Shape) -> tuple[torch.Tensor, ...]:
    """A random half of the channels of each axis."""
    return tuple(torch.randperm(shape[a])[: shape[a] // 2].sort().values for a in axes)


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


def moved(shape: Shape, axes: Shape, dtype: torch.dtype) -> float:
    """Bytes to read and write: behind a cut axis whole lines of the cache are read."""
    size = float(np.prod(shape)) * dtype.itemsize
    return size * (0.5 if 0 in axes else 1.0) + size / 2 ** len(axes)


def bits(result: Any) -> torch.Tensor:
    """Of the first tensor, as integers."""
    tensor = torch.as_tensor(result[0] if isinstance(result, list) else result)
    return tensor.view(BITS[tensor.element_size()])


def bare_copy(read_and_written: float, result: float) -> Part:
    """A new tensor of the size of the result, filled from another, and the other bytes moved."""
    source = torch.ones(int(result), dtype=torch.uint8)
    rest = torch.ones(int(read_and_written / 2 - result), dtype=torch.uint8)
    target = torch.empty_like(rest)
    return Part(lambda: (torch.empty_like(source).copy_(source), target.copy_(rest)), 1, None)


def pruned_conv(weight: torch.Tensor, keep: torch.Tensor) -> Part:
    """Removes the output channels of a convolution, in a module made outside the time measured."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    others = sorted(set(range(weight.shape[0])) - set(keep.tolist()))

    def run() -> torch.Tensor:
        peer = pytest.importorskip("torch_pruning")
        return peer.prune_conv_out_channels(conv, others).weight.detach()  # type: ignore[no-any-return]

    def before() -> None:
        conv.weight = nn.Parameter(weight)
        conv.out_channels, conv.in_channels = weight.shape[:2]

    expected = bits(weight.index_select(0, keep)).double()
    return Part(run, 1, expected, before)


def contest(shape: Shape, axes: Shape, dtype: torch.dtype, names: tuple[str, ...]) -> Contest:
    x = torch.randn(shape).to(dtype)
    keep = half(shape, axes)
    array, indices = x.view(BITS[dtype.itemsize]).numpy(), tuple(index.numpy() for index in keep)
    out = by_index_select(x, axes, keep)
    expected = bits(out).double()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.slice_channels([x], [axes], [keep]),
        SELECT: lambda: by_index_select(x, axes, keep),
        INTO: lambda: torch.index_select(x, axes[0], keep[0], out=out),
        INDEXING: lambda: by_indexing(x, axes, keep),
        TAKE: lambda: by_take(array, axes, indices),
        COPY: bare_copy(moved(shape, axes, dtype), out.nbytes),
    }
    if PRUNING in names:
        entrants[PRUNING] = pruned_conv(x, keep[0])
    return Contest({name: entrants[name] for name in names}, expected, 0, bits)


def in_place_contest(shape: Shape, axes: Shape, dtype: torch.dtype) -> Contest:
    x = torch.randn(shape).to(dtype)
    keep = half(shape, axes)
    expected = bits(by_index_select(x, axes, keep)).double()
    cut: list[torch.Tensor] = []

    def before() -> None:
        cut[:] = [x.clone()]

    entrants: dict[str, Any] = {
        OURS: Part(lambda: ops.slice_channels_(cut, [axes], [keep]), 1, expected, before),
        SELECT: lambda: by_index_select(x, axes, keep),
    }
    return Contest(entrants, expected, 0, bits)


def many_contest(shapes: list[Shape], in_place: bool) -> Contest:
    """A whole state in one call: the first axis of every tensor halved."""
    tensors = [torch.randn(shape) for shape in shapes]
    lists = {shape[0]: half(shape, (0,)) for shape in shapes}
    keep, axes = [lists[shape[0]] for shape in shapes], [(0,)] * len(shapes)
    expected = bits(by_index_select(tensors[0], (0,), keep[0])).double()
    halves = [tensor[: len(index)].clone() for tensor, index in zip(tensors, keep, strict=True)]
    cut: list[torch.Tensor] = []

    def before() -> None:
        cut[:] = [tensor.clone() for tensor in tensors]

    ours: Any = lambda: ops.slice_channels(tensors, axes, keep)  # noqa: E731
    if in_place:
        ours = Part(lambda: ops.slice_channels_(cut, axes, keep), 1, expected, before)
    entrants: dict[str, Any] = {
        OURS: ours,
        SELECT: lambda: [t.index_select(0, k[0]) for t, k in zip(tensors, keep, strict=True)],
        FOREACH: Part(lambda: torch._foreach_neg(halves), 1, None),
    }
    return Contest(entrants, expected, 0, bits)


def resnet50_shapes() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7)]
    into = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(depth):
            convs = [(width, into, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convs += [(4 * width, into, 1, 1)] if i == 0 else []
            shapes += convs
            into = 4 * width
    return shapes + [(shape[0],) for shape in shapes for _ in range(4)] + [(1000, 2048)]


def title(name: str, shape: Shape, axes: Shape, dtype: torch.dtype) -> str:
    where = "axis " + str(axes[0]) if len(axes) == 1 else "axes 0 and 1"
    return f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}, {where}"


USUAL = (OURS, SELECT, INDEXING, TAKE, COPY)
CUTS: list[tuple[Shape, Shape, torch.dtype, tuple[str, ...], dict[str, float]]] = [
    ((4096, 4096), (1,), BF16, (*USUAL, INTO), {INTO: 4.4, SELECT: 6}),
    ((2048, 2048), (1,), BF16, (*USUAL, INTO), {INTO: 4.4, SELECT: 6}),
    ((11008, 4096), (1,), BF16, USUAL, {SELECT: 6}),
    ((4096, 4096), (0,), BF16, USUAL, {COPY: 0.9}),
    ((3840, 4096), (0,), F32, USUAL, {COPY: 0.9}),
    ((3840, 4096), (1,), F32, USUAL, {COPY: 0.9}),
    ((2048, 2048), (0,), F32, USUAL, {COPY: 0.9}),
    ((2048, 2048), (1,), F32, USUAL, {COPY: 0.9}),
    ((512, 512, 3, 3), (0,), F32, (*USUAL, PRUNING), {COPY: 0.9}),
    ((512, 512, 3, 3), (1,), F32, USUAL, {COPY: 0.9}),
    ((4096, 4096), (0, 1), F32, USUAL, {SELECT: 1.7}),
    ((512, 512, 3, 3), (0, 1), F32, USUAL, {SELECT: 1.7}),
]
IN_PLACE: list[tuple[Shape, Shape, torch.dtype, float]] = [
    ((8192, 4096), (0,), F32, 2.6),
    ((8192, 4096), (1,), F32, 2.6),
    ((11008, 4096), (0,), BF16, 2.6),
    ((11008, 4096), (1,), BF16, 8),
]
CASES = [
    Case(
        title("slice_channels", shape, axes, dtype),
        names,
        partial(contest, shape, axes, dtype, names),
        goals=goals,
        bytes=moved(shape, axes, dtype),
    )
    for shape, axes, dtype, names, goals in CUTS
]
CASES += [
    Case(
        title("slice_channels_", shape, axes, dtype),
        (OURS, SELECT),
        partial(in_place_contest, shape, axes, dtype),
        goals={SELECT: goal},
        bytes=moved(shape, axes, dtype),
    )
    for shape, axes, dtype, goal in IN_PLACE
]
CASES += [
    Case(
        f"{'slice_channels_' if in_place else 'slice_channels'} of {name}, float32",
        (OURS, SELECT, FOREACH),
        partial(many_contest, shapes, in_place),
        goals={SELECT: goal},
        bytes=sum(4.0 * np.prod(shape) for shape in shapes),
        floor=None if in_place else FOREACH,
    )
    for name, shapes, goal in [
        ("1000 tensors [512]", [(512,)] * 1000, 5),
        ("a ResNet-50", resnet50_shapes(), 1),
    ]
    for in_place in (False, True)
]

test_contests = tests_of(CASES)
