"""slice_channels against index_select, over layouts, dtypes and bad plans."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from infoslice import ops, reference

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


def random_keep(size: int, count: int) -> torch.Tensor:
    return torch.randperm(size)[:count].sort().values


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor whose entries tell where they came from (modulo the range of the dtype)."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (2, 0, 1), (), (-1,)])
def test_every_dtype_and_axis(dtype, dims):
    x = numbered(7, 11, 5, dtype=dtype)
    keep = tuple(random_keep(x.shape[axis], x.shape[axis] // 2 + 1) for axis in dims)
    before = x.clone()
    (result,) = ops.slice_channels([x], [dims], [keep])
    (expected,) = reference.slice_channels([x], [dims], [keep])
    assert torch.equal(result, expected)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert result.untyped_storage().nbytes() == result.numel() * result.element_size()
    assert result.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    if dtype != torch.bfloat16:
        arrays = tuple(k.numpy() for k in keep)
        (array,) = ops.slice_channels([x.numpy()], [dims], [arrays])
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        assert array.base is None
        np.testing.assert_array_equal(array, expected.numpy())


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 127, 128, 129, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_odd_sizes(size, share):
    x = torch.randn(size, 3)
    keep = random_keep(size, int(size * share))
    rows, columns = ops.slice_channels([x, x.T], [(0,), (1,)], [(keep,), (keep,)])
    assert torch.equal(rows, x[keep])
    assert torch.equal(columns, x[keep].T)
    assert columns.is_contiguous()


VIEWS = {
    "transposed": lambda x: x.transpose(0, 1),
    "permuted": lambda x: x.permute(3, 1, 0, 2),
    "stepped": lambda x: x[::2, :, 1::2],
    "inside": lambda x: x[1:-1, 2:, 1:, :-1],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "flat": lambda x: x.reshape(-1)[3:],
    "scalar": lambda x: x[0, 0, 0, 0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view):
    x = VIEWS[view](numbered(6, 8, 5, 4))
    for count in range(min(x.ndim, 2) + 1):
        for dims in itertools.combinations(range(x.ndim), count):
            keep = tuple(random_keep(x.shape[axis], (x.shape[axis] + 1) // 2) for axis in dims)
            (result,) = ops.slice_channels([x], [dims], [keep])
            assert torch.equal(result, reference.slice_channels([x], [dims], [keep])[0])
            assert result.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "last"),
    [((5, 8, 4, 3), torch.channels_last), ((5, 8, 2, 4, 3), torch.channels_last_3d)],
)
def test_channels_last_is_kept(shape, last):
    x = numbered(*shape).to(memory_format=last)
    keep = (random_keep(5, 3), random_keep(8, 5))
    (result,) = ops.slice_channels([x], [(0, 1)], [keep])
    assert result.is_contiguous(memory_format=last)
    assert not result.is_contiguous()
    assert torch.equal(result, reference.slice_channels([x], [(0, 1)], [keep])[0])
    # Where a tensor is both, as 1x1 kernels are, it stays plainly contiguous.
    both = torch.randn(5, 8, *[1] * (len(shape) - 2))
    assert ops.slice_channels([both], [(0, 1)], [keep])[0].stride() == both[:3, :5].clone().stride()


def test_many_tensors_in_one_call():
    shapes = [(64, 3, 3, 3), (64,), (64,), (32, 64), (), (2, 64, 64), (0, 64)]
    dims = [(0,), (0,), (), (1, 0), (), (1, 2), (1,)]
    tensors = [numbered(*shape, dtype=DTYPES[i + 4]) for i, shape in enumerate(shapes)]
    keep = [
        tuple(random_keep(t.shape[d], 17) for d in axes)
        for t, axes in zip(tensors, dims, strict=True)
    ]
    results = ops.slice_channels(tensors, dims, keep)
    for result, expected in zip(
        results, reference.slice_channels(tensors, dims, keep), strict=True
    ):
        assert torch.equal(result, expected)
    assert ops.slice_channels([], [], []) == []


def test_slicing_twice_is_slicing_by_the_composed_indices():
    x = torch.randn(40, 9)
    first, second = random_keep(40, 25), random_keep(25, 10)
    (once,) = ops.slice_channels([x], [(0,)], [(first,)])
    (twice,) = ops.slice_channels([once], [(0,)], [(second,)])
    (composed,) = ops.slice_channels([x], [(0,)], [(first[second],)])
    assert torch.equal(twice, composed)


def test_threads_change_nothing_on_large_tensors():
    tensors = [torch.randn(3000, 1100), torch.randn(700, 1000, 3, 3)]
    keep = [(random_keep(3000, 1501), random_keep(1100, 550)), (random_keep(1000, 333),)]
    dims = [(0, 1), (1,)]
    expected = reference.slice_channels(tensors, dims, keep)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for result, reference_result in zip(
                ops.slice_channels(tensors, dims, keep), expected, strict=True
            ):
                assert torch.equal(result, reference_result)
    finally:
        torch.set_num_threads(1)


def test_parameters_give_tensors_without_gradient():
    weight = torch.nn.Parameter(torch.randn(4, 3))
    (result,) = ops.slice_channels([weight], [(0,)], [(torch.tensor([0, 2]),)])
    assert not result.requires_grad
    assert type(result) is torch.Tensor
    assert torch.equal(result, weight.detach()[[0, 2]])


def test_meta_tensors_have_shapes_only():
    x = torch.empty(64, 32, 3, 3, dtype=torch.bfloat16, device="meta")
    x = x.to(memory_format=torch.channels_last)
    keep = (torch.arange(10), torch.arange(4))
    (result,) = ops.slice_channels([x], [(0, 1)], [keep])
    assert result.device.type == "meta"
    assert result.shape == (10, 4, 3, 3)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)


BAD = [
    (ValueError, r"tensors\[1\], axis 0: expected keep indices in \[0, 4\), got 4", [0, 4]),
    (ValueError, r"tensors\[1\], axis 0: expected keep indices in \[0, 4\), got -1", [-1, 2]),
    (ValueError, r"tensors\[1\], axis 0: .*sorted and unique keep indices, got 1 after 2", [2, 1]),
    (ValueError, r"tensors\[1\], axis 0: .*sorted and unique keep indices, got 2 after 2", [2, 2]),
    (ValueError, r"tensors\[1\], axis 0: .*one dimension, got shape \[1, 2\]", [[0, 1]]),
]


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize(("error", "message", "keep"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_keep(route, error, message, keep):
    good, bad = torch.tensor([0, 1]), torch.tensor(keep)
    x = torch.randn(4, 3)
    if route == "numpy":
        good, bad, x = good.numpy(), bad.numpy(), x.numpy()
    with pytest.raises(error, match="slice_channels: " + message):
        ops.slice_channels([x, x], [(0,), (0,)], [(good,), (bad,)])


@pytest.mark.parametrize("route", ["torch", "numpy"])
def test_bad_plans(route):
    index, x = torch.tensor([0, 1]), torch.randn(4, 3)
    short, floats = index.int(), index.double()
    if route == "numpy":
        index, x, short, floats = index.numpy(), x.numpy(), short.numpy(), floats.numpy()
    with pytest.raises(TypeError, match=r"tensors\[0\], axis 1: expected int64 .*, got int32"):
        ops.slice_channels([x], [(1,)], [(short,)])
    with pytest.raises(TypeError, match=r"tensors\[0\], axis 1: expected int64 .*, got float64"):
        ops.slice_channels([x], [(1,)], [(floats,)])
    with pytest.raises(ValueError, match=r"tensors\[0\]: expected axes within its 2 dim.*, got 2"):
        ops.slice_channels([x], [(2,)], [(index,)])
    with pytest.raises(ValueError, match=r"tensors\[0\]: expected axes within its 2 dim.*, got -3"):
        ops.slice_channels([x], [(-3,)], [(index,)])
    with pytest.raises(
        ValueError, match=r"tensors\[0\]: expected each axis once, got axis 1 twice"
    ):
        ops.slice_channels([x], [(1, -1)], [(index, index)])
    with pytest.raises(
        ValueError, match="dims: expected an entry for each of the 2 tensors, got 1"
    ):
        ops.slice_channels([x, x], [(1,)], [(index,)])
    with pytest.raises(ValueError, match="keep: expected one index array for each axis in dims"):
        ops.slice_channels([x], [(0, 1)], [(index,)])
    with pytest.raises(ValueError, match="keep: expected one index array for each axis in dims"):
        ops.slice_channels([x], [(0,)], [(index,), (index,)])


def test_bad_types():
    index = np.array([0])
    with pytest.raises(TypeError, match="expected a NumPy array or a torch tensor, got list"):
        ops.slice_channels([[1, 2]], [(0,)], [(index,)])
    with pytest.raises(TypeError, match="array of numbers"):
        ops.slice_channels([np.array([None])], [(0,)], [(index,)])
    with pytest.raises(TypeError, match="tensors: expected only torch tensors, got ndarray"):
        ops.slice_channels([torch.ones(2), np.ones(2)], [(0,), (0,)], [(index,), (index,)])


# -- compression of rows, at each CPU level --------------------------------------------------------


def check_blocks() -> None:
    """Rows of blocks of many sizes, sparse and dense, of one window and of many, both ways."""
    for dtype, trailing in itertools.product((torch.uint8, torch.bfloat16, torch.float32), (1, 3)):
        for size, share in itertools.product((16, 33, 64, 65, 129, 500), (0.02, 0.1, 0.5, 0.97)):
            x = numbered(5, size, trailing, dtype=dtype).clone()
            keep = (random_keep(size, max(1, int(size * share))),)
            (expected,) = reference.slice_channels([x], [(1,)], [keep])
            padded = torch.full((5, size + 3, trailing), 77).to(dtype)
            padded[:, 1:-2] = x
            for source in (x, padded[:, 1:-2]):  # rows that follow each other, and rows apart
                (result,) = ops.slice_channels([source], [(1,)], [keep])
                assert torch.equal(result, expected), (dtype, trailing, size, share)
            ops.slice_channels_([x], [(1,)], [keep])
            assert torch.equal(x, expected), (dtype, trailing, size, share)


def test_blocks_of_every_size():
    check_blocks()


@pytest.mark.parametrize("level", ["baseline", "v3"])
def test_blocks_of_every_size_on_lower_cpu_levels(level):
    code = "import test_slice_channels; test_slice_channels.check_blocks()"
    environment = {**os.environ, "INFOSLICE_CPU_LEVEL": level}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, cwd=os.path.dirname(__file__)
    )


# -- in place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (1, 2), (2, 0, 1), (), (-1,)])
def test_in_place_for_every_dtype_and_axis(dtype, dims):
    x = numbered(7, 41, 5, dtype=dtype).clone()
    keep = tuple(random_keep(x.shape[axis], x.shape[axis] // 2 + 1) for axis in dims)
    (expected,) = reference.slice_channels([x], [dims], [keep])
    array = None if dtype == torch.bfloat16 else x.numpy().copy()
    address, size = x.data_ptr(), x.untyped_storage().nbytes()
    (result,) = ops.slice_channels_([x], [dims], [keep])
    assert result is x
    assert torch.equal(x, expected)
    assert x.is_contiguous()
    assert (x.data_ptr(), x.untyped_storage().nbytes()) == (address, size)
    if array is not None:
        arrays = tuple(k.numpy() for k in keep)
        (view,) = ops.slice_channels_([array], [dims], [arrays])
        np.testing.assert_array_equal(view, expected.numpy())
        assert view.base is array
        assert view.ctypes.data == array.ctypes.data
        assert view.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "last"),
    [((5, 8, 4, 3), torch.channels_last), ((5, 8, 2, 4, 3), torch.channels_last_3d)],
)
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1)])
def test_in_place_keeps_channels_last(shape, last, dims):
    x = numbered(*shape).to(memory_format=last)
    keep = tuple(random_keep(shape[axis], 3) for axis in dims)
    (expected,) = ops.slice_channels([x], [dims], [keep])
    ops.slice_channels_([x], [dims], [keep])
    assert torch.equal(x, expected)
    assert x.is_contiguous(memory_format=last)
    assert x.stride() == expected.stride()


def test_in_place_parameters_stay_parameters():
    layer = torch.nn.Linear(6, 8)
    weight, bias = layer.weight, layer.bias
    expected = weight.detach()[[1, 4]][:, [0, 5]].clone()
    rows, columns = torch.tensor([1, 4]), torch.tensor([0, 5])
    version = weight._version
    ops.slice_channels_([weight, bias], [(0, 1), (0,)], [(rows, columns), (rows,)])
    assert layer.weight is weight
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight._version > version
    assert torch.equal(weight, expected)
    layer(torch.ones(3, 2)).sum().backward()
    assert weight.grad.shape == (2, 2)


def test_in_place_is_seen_by_autograd():
    x = torch.randn(6, 4, requires_grad=True)
    loss = (x * x).sum()
    ops.slice_channels_([x], [(0,)], [(torch.tensor([1]),)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_again_and_again():
    x = torch.randn(40, 30, 3)
    expected = x.clone()
    for count in (30, 20, 20, 7, 1, 0):
        rows = random_keep(x.shape[0], min(count, x.shape[0]))
        columns = random_keep(x.shape[1], min(count, x.shape[1]))
        (expected,) = reference.slice_channels([expected], [(0, 1)], [(rows, columns)])
        ops.slice_channels_([x], [(0, 1)], [(rows, columns)])
        assert torch.equal(x, expected)
        assert x.shape == expected.shape


def test_in_place_threads_change_nothing():
    tensors = [torch.randn(1100, 1100), torch.randn(300, 500, 3, 3), torch.randn(17)] * 2
    dims = [(0, 1), (1,), ()] * 2
    keep = [(random_keep(1100, 600), random_keep(1100, 550)), (random_keep(500, 333),), ()] * 2
    expected = reference.slice_channels(tensors, dims, keep)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            copies = [t.clone() for t in tensors]
            results = ops.slice_channels_(copies, dims, keep)
            assert all(map(torch.equal, results, expected))
    finally:
        torch.set_num_threads(1)


IN_PLACE_BAD = {
    "a view": lambda x: (x[:3], "memory of its own, got a view"),
    "transposed": lambda x: (x.T, "memory of its own, got a view"),
    "detached, with gaps": lambda x: (x[:, ::2].detach(), "contiguous or channels_last"),
    "expanded": lambda x: (x[:1].expand(4, 4).detach(), "contiguous or channels_last"),
    "shared": lambda x: (x, r"share no memory .* got tensors\[.\] and tensors\[.\] that do"),
    "overlapping": lambda x: (x.detach()[3:].detach(), "share no memory"),
}


@pytest.mark.parametrize("case", IN_PLACE_BAD)
def test_in_place_refuses_before_it_writes(case):
    good = torch.randn(6, 4)
    before = good.clone()
    bad, message = IN_PLACE_BAD[case](good)
    keep = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=f"slice_channels_: .*{message}"):
        ops.slice_channels_([good, bad], [(0,), (0,)], [(keep,), (keep,)])
    assert torch.equal(good, before)
    assert good.shape == before.shape


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize(("error", "message", "keep"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_in_place_bad_keep_leaves_all_as_it_was(route, error, message, keep):
    good, bad = torch.tensor([1, 3]), torch.tensor(keep)
    tensors = [torch.randn(4, 3), torch.randn(4, 3)]
    before = [t.clone() for t in tensors]
    given = tensors
    if route == "numpy":
        good, bad, given = good.numpy(), bad.numpy(), [t.numpy().copy() for t in tensors]
    with pytest.raises(error, match="slice_channels_: " + message):
        ops.slice_channels_(given, [(0,), (0,)], [(good,), (bad,)])
    for tensor, same in zip(given, before, strict=True):
        np.testing.assert_array_equal(tensor, same)


def test_in_place_refuses_to_cut_its_keep_list():
    keep = torch.tensor([0, 2, 3, 9])
    before = keep.clone()
    for alias in (keep, keep[1:3]):
        with pytest.raises(ValueError, match=r"got tensors\[1\] and a keep list that do"):
            ops.slice_channels_([torch.ones(10), keep], [(0,), ()], [(alias,), ()])
    assert torch.equal(keep, before)


def test_in_place_arrays_that_are_refused():
    index = np.array([1, 2])
    array = np.arange(24.0).reshape(6, 4).copy()
    frozen = array.copy()
    frozen.flags.writeable = False
    swapped = array.astype(array.dtype.newbyteorder())
    for bad in (array[:3], array.T, frozen, swapped):
        with pytest.raises(ValueError, match=r"tensors\[1\]: expected a plain array"):
            ops.slice_channels_([array, bad], [(0,), (0,)], [(index,), (index,)])
    with pytest.raises(ValueError, match="contiguous or channels_last"):
        ops.slice_channels_([np.asfortranarray(array)], [(0,)], [(index,)])
    with pytest.raises(TypeError, match="expected a NumPy array or a torch tensor, got list"):
        ops.slice_channels_([[1, 2]], [(0,)], [(index,)])
    np.testing.assert_array_equal(array, np.arange(24.0).reshape(6, 4))


def test_in_place_needs_memory():
    x = torch.empty(4, 3, device="meta")
    with pytest.raises(RuntimeError, match="slice_channels_: tensors: expected tensors with memor"):
        ops.slice_channels_([x], [(0,)], [(torch.tensor([0]),)])
