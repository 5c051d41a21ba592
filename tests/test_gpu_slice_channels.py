"""slice_channels and slice_channels_ on a GPU: every byte as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpu_checks import BF16, Case, bits, gaps, gpu_tests, need
from infoslice import ops

DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16,
    torch.uint8, torch.bool, torch.complex128,
]  # fmt: skip


def case(title, make, op="slice_channels"):
    return Case(op, title, make, 0)


def values(*shape, dtype=torch.float32):
    x = torch.randn(shape, dtype=torch.float64)
    return x > 0 if dtype == torch.bool else (100 * x).to(dtype)


def some(size, left, seed=0):
    """A sorted choice that depends on the sizes alone."""
    generator = torch.Generator().manual_seed(size + 1000 * left + seed)
    return torch.randperm(size, generator=generator)[:left].sort().values


def cut(*tensors):
    """Arguments: each entry is a function that makes a tensor, and its cuts {axis: left}."""

    def make():
        made = [tensor() for tensor, _ in tensors]
        dims = [list(cuts) for _, cuts in tensors]
        keep = [
            [some(x.shape[axis], left) for axis, left in cuts.items()]
            for x, (_, cuts) in zip(made, tensors, strict=True)
        ]
        return [made, dims, keep]

    return make


def of(*shape, dtype=torch.float32):
    return lambda: values(*shape, dtype=dtype)


def channels_last(*shape):
    return lambda: values(*shape).to(memory_format=torch.channels_last)


MANY = [(of(size, 3), {0: size // 2}) for size in range(1, 200)]
LAYERS = [
    (of(64, 32, 3, 3), {0: 40, 1: 20}), (of(64), {0: 40}), (of(64, dtype=torch.int64), {0: 40}),
    (of(33, 64, dtype=BF16), {1: 40}), (of(5), {}), (channels_last(8, 12, 5, 3), {1: 7, 0: 3}),
]  # fmt: skip
DENSE = [case(f"rows of {d}", cut((of(37, 50, dtype=d), {0: 20}))) for d in DTYPES]
DENSE += [case(f"columns of {d}", cut((of(37, 51, dtype=d), {1: 20}))) for d in DTYPES]
DENSE += [case(f"both of {d}", cut((of(29, 70, dtype=d), {0: 11, 1: 33}))) for d in DTYPES]
DENSE += [
    case("all kept", cut((of(19, 23), {0: 19, 1: 23}))),
    case("none kept", cut((of(19, 23), {1: 0}), (of(19, 23), {0: 3}))),
    case("one kept", cut((of(300, 300), {0: 1, 1: 1}))),
    case("nothing cut", cut((of(7, 5), {}))),
    case("empty tensor", cut((of(0, 5), {1: 2}))),
    case("a scalar", cut((of(), {}))),
    case("rows in blocks", lambda: [[values(64, 256)], [[0]], [[torch.arange(16, 48)]]]),
    case("columns in blocks", lambda: [[values(64, 256)], [[1]], [[torch.arange(32, 160)]]]),
    case("negative axis", cut((of(9, 8, 7), {-1: 3, 0: 2}))),
    case("middle axis", cut((of(9, 80, 16), {1: 33}))),
    case("three axes", cut((of(9, 18, 27), {0: 5, 1: 6, 2: 7}))),
    case("a layer's tensors", cut(*LAYERS)),
    case("199 tensors", cut(*MANY)),
    case("long", cut((of(3, 100_001, dtype=torch.uint8), {1: 60_001}))),
]
STRIDED = [
    case("transposed", cut((lambda: values(40, 50).T, {0: 20, 1: 10}))),
    case("gaps", cut((lambda: gaps(values(40, 50)), {0: 20, 1: 10}))),
    case("offset of one byte", cut((lambda: values(4001, dtype=torch.uint8)[1:].view(40, 100),
         {1: 60}))),
    case("expanded", cut((lambda: values(1, 30).expand(20, 30), {0: 7, 1: 12}))),
]  # fmt: skip
IN_PLACE = [Case("slice_channels_", c.title, c.make, 0) for c in DENSE]

CASES = DENSE + STRIDED

test_cases = gpu_tests(CASES)
test_in_place = gpu_tests(IN_PLACE)


@pytest.mark.gpu
def test_a_parameter_stays_one_at_its_address():
    weight = nn.Parameter(values(32, 16).cuda())
    before, address = weight.detach().cpu().clone(), weight.data_ptr()
    (cut_weight,) = ops.slice_channels_([weight], [[0]], [[some(32, 10)]])
    assert cut_weight is weight
    assert weight.data_ptr() == address
    assert weight.requires_grad
    assert weight.is_contiguous()
    assert torch.equal(weight.detach().cpu(), before[some(32, 10)])


@pytest.mark.gpu
def test_refusals_are_those_of_the_cpu():
    x = torch.randn(6, 5, device="cuda")
    for keep in ([3, 2], [1, 1], [0, 6], [-1]):
        with pytest.raises(ValueError, match=r"slice_channels: tensors\[0\], axis 0"):
            ops.slice_channels([x], [[0]], [[torch.tensor(keep)]])
    with pytest.raises(RuntimeError, match="slice_channels"):
        ops.slice_channels([x, x.cpu()], [[0], [0]], [[torch.tensor([1])]] * 2)
    with pytest.raises(ValueError, match="share no memory"):
        ops.slice_channels_([x, x], [[0], [0]], [[torch.tensor([1])]] * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("op", [ops.slice_channels, ops.slice_channels_])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=str)
def test_more_than_2_to_the_31_elements(op, axes):
    """More than 4 GB of bfloat16, and more than 2^32 elements along the way for bytes."""
    shape = (70_001, 32_768)
    need(5 * 4.6e9)
    x = torch.empty(shape, dtype=torch.int16, device="cuda").random_().view(BF16)
    keep = [some(shape[axis], shape[axis] * 3 // 4) for axis in axes]
    true = x.view(torch.int16)
    for axis, index in zip(axes, keep, strict=True):
        true = true.index_select(axis, index.cuda())
    (result,) = op([x], [list(axes)], [keep])
    assert torch.equal(result.view(torch.int16), true)


@pytest.mark.gpu
def test_a_tensor_of_more_than_2_to_the_32_bytes():
    need(3 * 4.4e9)
    x = torch.empty(2**32 + 12_345, dtype=torch.uint8, device="cuda").random_()
    keep = torch.arange(2**32 - 5000, 2**32 + 12_000)[::3]
    (result,) = ops.slice_channels([x], [[0]], [[keep]])
    assert torch.equal(bits(result), bits(x[keep.cuda()]))
