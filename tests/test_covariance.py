"""covariance, cross_covariance and the patch forms against references and independent libraries."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoslice import ops, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CHANNELS = [1, 2, 31, 32, 33, 127, 128, 129]


def samples(n: int, channels: int, dtype: torch.dtype, mean: float = 0.0) -> torch.Tensor:
    """[n, C]: correlated channels of different scales, means of `mean` standard deviations."""
    mix = torch.randn(channels, channels, dtype=torch.float64) / channels**0.5
    mix += torch.eye(channels, dtype=torch.float64)
    x = torch.randn(n, channels, dtype=torch.float64) @ mix
    return (x + mean * x.std() * torch.sign(torch.randn(channels, dtype=torch.float64))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("n", "mean"), [(2, 0), (20, 100), (257, 100), (700, 0), (3000, 100)])
def test_all_entries_equal_the_reference(assert_close, dtype, channels, n, mean):
    x = samples(n, channels, dtype, mean)
    before = x.clone()
    result = ops.covariance(x)
    expected = reference.covariance(x)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.covariance.dtype == result.mean.dtype == out
    # the covariance of data about a mean of 100 standard deviations: the data themselves, exact in
    # their dtype, are what counts, so the bar does not move
    assert_close(result.covariance, expected.covariance, dtype)
    assert_close(result.mean, expected.mean, dtype)
    assert torch.equal(result.covariance, result.covariance.mT)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand_channels_and_fewer_samples(assert_close, dtype):
    x = samples(300, 1000, dtype, 100)
    result = ops.covariance(x, dtype=torch.float64)
    expected = reference.covariance(x)
    assert_close(result.covariance, expected.covariance, dtype)
    assert_close(result.mean, expected.mean, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slabs_of_many_samples(assert_close, dtype):
    x = samples(40_000, 20, dtype, 100)
    assert_close(ops.covariance(x).covariance, reference.covariance(x).covariance, dtype)


# Lines and rows longer and shorter than a chunk, whole and broken strips, odd ends of all of them.
PACKED_SHAPES = [
    (3, 37, 45, 61),
    (1, 16, 2500),
    (2, 21, 900),
    (5, 40, 196),
    (70, 18, 7, 7),
    (400, 6, 3),
    (7, 70, 51, 16),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PACKED_SHAPES, ids=str)
def test_images(assert_close, shape, dtype, last):
    x = samples(shape[0] * math.prod(shape[2:]), shape[1], dtype, 100)
    x = x.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    if not last:
        x = x.contiguous()
    result = ops.covariance(x, channel_dim=1)
    expected = reference.covariance(x, channel_dim=1)
    assert_close(result.covariance, expected.covariance, dtype)
    assert_close(result.mean, expected.mean, dtype)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits(dtype, rows):
    # A channel for each exponent, so that each is judged on a scale of its own.
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = bits[bits.isfinite()].float()
    exponents = torch.frexp(x).exponent.clamp(min=-13 if dtype == torch.float16 else -40)
    values = range(-13, 17) if dtype == torch.float16 else range(-40, 41)
    channels = [x[exponents == e] for e in values]
    count = min(map(len, channels))
    x = torch.stack([channel[-count:] for channel in channels], dim=1).to(dtype)
    if not rows:
        x = x.T.contiguous().T
    result, expected = ops.covariance(x, dtype=torch.float64), reference.covariance(x)
    error = (result.covariance.diagonal() / expected.covariance.diagonal() - 1).abs().max()
    assert error <= 2e-6


def test_independent_judges(assert_close):
    datasets = pytest.importorskip("sklearn.covariance")
    x = samples(200, 17, torch.float64, 3.0)
    biased = ops.covariance(x.numpy(), correction=0)
    assert isinstance(biased.covariance, np.ndarray)
    judge = torch.from_numpy(datasets.empirical_covariance(x.numpy()))
    assert_close(torch.from_numpy(biased.covariance), judge)
    unbiased = ops.covariance(x)
    assert_close(unbiased.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)))
    assert_close(unbiased.covariance, torch.cov(x.T))
    assert_close(unbiased.mean, x.mean(0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numpy_and_torch_agree_bit_for_bit(dtype):
    x = samples(300, 33, torch.float64, 2.0).numpy().astype(dtype)
    for ours, theirs in zip(ops.covariance(x), ops.covariance(torch.from_numpy(x)), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, theirs.numpy())


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "strided rows": lambda x: torch.zeros(2 * x.shape[0], x.shape[1], dtype=x.dtype)[::2].copy_(x),
    "strided columns": lambda x: torch.zeros(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x),
    "within a buffer": lambda x: F.pad(x, (3, 2, 1, 4))[1:-4, 3:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(assert_close, layout, dtype):
    x = samples(301, 37, dtype, 10)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    assert_close(ops.covariance(view).covariance, reference.covariance(x).covariance, dtype)


def test_negative_and_zero_strides_of_numpy(assert_close):
    x = samples(50, 5, torch.float64).numpy()
    backwards = ops.covariance(x[::-1, ::-1])
    expected = torch.from_numpy(np.cov(x[:, ::-1], rowvar=False))
    assert_close(torch.from_numpy(backwards.covariance), expected)
    constant = ops.covariance(np.broadcast_to(x[0], (9, 5)))
    assert (constant.covariance == 0).all()
    np.testing.assert_array_equal(constant.mean, x[0])


def test_foreign_byte_order_and_record_views(assert_close):
    x = samples(50, 5, torch.float64).numpy()
    expected = torch.from_numpy(np.cov(x, rowvar=False))
    swapped = x.astype(">f8")
    assert_close(torch.from_numpy(ops.covariance(swapped).covariance), expected)
    records = np.zeros((50, 5), dtype=[("flag", "i1"), ("value", "f8")])
    records["value"] = x
    assert_close(torch.from_numpy(ops.covariance(records["value"]).covariance), expected)


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (3, 6, 50), (2, 6, 3, 4, 5), (40, 6)])
@pytest.mark.parametrize("permute", [False, True])
def test_channels_first(assert_close, shape, permute):
    x = torch.randn(shape, dtype=torch.float64) + 7
    if permute:  # the same values in the memory of [spatial..., C, N]
        x = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    result = ops.covariance(x, channel_dim=1)
    flat = x.movedim(1, 0).reshape(6, -1)
    assert_close(result.covariance, torch.cov(flat))
    assert_close(result.mean, flat.mean(1))


def test_channels_last_equals_channels_first(assert_close):
    x = torch.randn(4, 19, 9, 7, dtype=torch.float32)
    first = ops.covariance(x, channel_dim=1)
    last = ops.covariance(x.to(memory_format=torch.channels_last), channel_dim=1)
    assert_close(last.covariance, first.covariance, torch.float32)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize("channel_dim", [-1, -2])
def test_batches(assert_close, batch, channel_dim):
    x = torch.randn(*batch, 4, 11, 5, dtype=torch.float64)
    args = {"channel_dim": channel_dim, "batch_dims": len(batch)}
    result = ops.covariance(x, **args)
    channels = x.shape[channel_dim]
    assert result.covariance.shape == (*batch, channels, channels)
    for index in itertools.product(*map(range, batch)):
        flat = x[index].movedim(channel_dim, -1).reshape(-1, channels)
        assert_close(result.covariance[index], torch.cov(flat.T))
        assert_close(result.mean[index], flat.mean(0))


def test_an_item_of_a_batch_is_what_it_is_alone():
    x = torch.randn(5, 9000, 8)
    together = ops.covariance(x, batch_dims=1)
    for i in range(5):
        assert torch.equal(together.covariance[i], ops.covariance(x[i]).covariance)


def test_an_empty_batch():
    result = ops.covariance(torch.zeros(0, 4, 3), batch_dims=1)
    assert result.covariance.shape == (0, 3, 3)
    assert result.mean.shape == (0, 3)


def test_drift_and_outliers_cost_no_accuracy(assert_close):
    # The first chunk says nothing about the rest: a pilot shift alone would lose all digits here.
    x = torch.cat([torch.zeros(300, 9), 1e4 + torch.randn(5000, 9), torch.full((1, 9), -1e6)])
    assert_close(ops.covariance(x).covariance, reference.covariance(x).covariance, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mean_that_wanders(assert_close, dtype):
    # The shift is moved many times, within slabs and between them; channel 3 rests.
    x = torch.randn(40_000, 20, dtype=torch.float64)
    x += 300 * torch.sin(torch.arange(40_000) / 3000)[:, None] * torch.arange(20)
    x[:, 3] = 5
    x = x.to(dtype)
    expected = reference.covariance(x)
    for view in (x, x.T.contiguous().T):
        result = ops.covariance(view)
        assert_close(result.covariance, expected.covariance, dtype)
        assert_close(result.mean, expected.mean, dtype)
        assert (result.covariance[3] == 0).all()
    cross = ops.cross_covariance(x[:, :9], x[:, 9:])
    assert_close(cross.covariance, expected.covariance[:9, 9:], dtype)


def test_a_variance_too_small_for_float32_is_not_lost(assert_close):
    # The squares of these deviations are zero in float32, and so are their sums.
    x = torch.tensor([1e-36, -1e-36]).repeat(500)[:, None]
    result = ops.covariance(x, dtype=torch.float64)
    assert_close(result.covariance, reference.covariance(x).covariance)
    assert result.covariance.item() > 0


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e17, 1e30])
def test_scales_that_float32_squares_do_not_hold(assert_close, scale):
    x = torch.randn(300, 20) * scale
    result = ops.covariance(x, dtype=torch.float64)
    assert_close(result.covariance, reference.covariance(x).covariance, torch.float32)


def test_constant_channels_have_variance_zero():
    x = torch.randn(1000, 4)
    x[:, 1] = 0.1
    x[:, 3] = 0.0
    result = ops.covariance(x)
    for channel in (1, 3):
        assert (result.covariance[channel] == 0).all()
        assert (result.covariance[:, channel] == 0).all()
        assert result.mean[channel] == x[0, channel]


def test_shift_and_scale(assert_close):
    x = samples(400, 12, torch.float64)
    base = ops.covariance(x).covariance
    assert_close(ops.covariance(x + 5).covariance, base, factor=100)
    assert_close(ops.covariance(-3 * x).covariance, 9 * base)
    mix = torch.randn(12, 12, dtype=torch.float64)
    assert_close(ops.covariance(x @ mix).covariance, mix.T @ base @ mix, factor=10)


def in_threads(call):
    try:
        torch.set_num_threads(3)
        return call()
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(40_000, 33), (600, 700), (9, 70, 60, 60), (3, 600, 30, 30)])
def test_threads_change_nothing(shape):
    x = torch.randn(shape)
    calls = [
        lambda: ops.covariance(x, channel_dim=1),
        lambda: ops.cross_covariance(x, x.narrow(1, 5, 20), channel_dim=1),
    ]
    if x.ndim == 4:
        calls.append(lambda: ops.patch_covariance(x.narrow(1, 5, 20), 3, padding=1))
    for call in calls:
        for one, several in zip(call(), in_threads(call), strict=True):
            assert torch.equal(one, several)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(1, 3), (17, 16), (40, 5)])
def test_cross_covariance(assert_close, dtype, channels):
    both = samples(700, sum(channels), dtype, 100)
    x, y = both.split(channels, dim=1)  # views into one buffer
    result = ops.cross_covariance(x, y)
    expected = reference.cross_covariance(x, y)
    # relative to the whole matrix of which this is a block
    whole = reference.covariance(both).covariance.clone()
    block = whole.clone()
    block[: channels[0], channels[0] :] = result.covariance.double()
    assert_close(block, whole, dtype)
    assert_close(result.mean_x, expected.mean_x, dtype)
    assert_close(result.mean_y, expected.mean_y, dtype)
    same = ops.cross_covariance(x.numpy(), y.numpy()) if dtype != torch.bfloat16 else None
    if same is not None:
        np.testing.assert_array_equal(same.covariance, result.covariance.numpy())


def test_cross_covariance_of_different_layouts_and_batches(assert_close):
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    y = torch.randn(2, 3, 6, 4, 7, dtype=torch.float64).transpose(2, 4)  # [2, 3, 7, 4, 6]
    args = {"channel_dim": 2, "batch_dims": 1}
    result = ops.cross_covariance(x, y, **args)
    expected = reference.cross_covariance(x, y, **args)
    assert result.covariance.shape == (2, 5, 7)
    for ours, theirs in zip(result, expected, strict=True):
        assert_close(ours, theirs)


GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 0), "dilation": (1, 2)},
    {"kernel_size": 2, "stride": 3, "padding": 4},
    {"kernel_size": 1},
    {"kernel_size": (1, 5), "padding": (0, 2), "dilation": 2},
    {"kernel_size": (7, 6), "stride": 5},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_patches(assert_close, geometry, dtype, last):
    x = (torch.randn(5, 3, 9, 11, dtype=torch.float64) + 2).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    result = ops.patch_covariance(x, **geometry)
    expected = reference.patch_covariance(x, **geometry)
    assert_close(result.covariance, expected.covariance, dtype)
    assert_close(result.mean, expected.mean, dtype)
    geometry = dict(geometry)
    kernel = geometry.pop("kernel_size")
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    y = F.conv2d(x.double(), torch.randn(4, 3, *kernel, dtype=torch.float64), **geometry).to(dtype)
    cross = ops.patch_cross_covariance(x, y, kernel, **geometry)
    expected = reference.patch_cross_covariance(x, y, kernel, **geometry)
    for ours, theirs in zip(cross, expected, strict=True):
        assert_close(ours, theirs, dtype, factor=4)
    if dtype != torch.bfloat16:
        same = ops.patch_covariance(x.numpy(), kernel, **geometry)
        np.testing.assert_array_equal(same.covariance, result.covariance.numpy())


def test_patches_give_the_weights_of_the_convolution(assert_close):
    # Regression of a convolution's output on its own patches returns its weights.
    x = torch.randn(20, 2, 10, 10, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    y = F.conv2d(x, weight, padding=1, bias=torch.randn(3, dtype=torch.float64))
    cov = ops.patch_covariance(x, 3, padding=1).covariance
    cross = ops.patch_cross_covariance(x, y, 3, padding=1).covariance
    solved = torch.linalg.solve(cov, cross).T.reshape(weight.shape)
    assert_close(solved, weight, factor=100)


def test_patches_of_sequences(assert_close):
    x = torch.randn(6, 4, 30, dtype=torch.float64)
    args = {"stride": 2, "padding": 3, "dilation": 2}
    result = ops.patch_covariance(x, 5, **args)
    assert_close(result.covariance, reference.patch_covariance(x, 5, **args).covariance)
    y = F.conv1d(x, torch.randn(2, 4, 5, dtype=torch.float64), **args)
    cross = ops.patch_cross_covariance(x, y, (5,), **args)
    assert_close(cross.covariance, reference.patch_cross_covariance(x, y, 5, **args).covariance)


@pytest.mark.parametrize(
    ("shape", "args"),
    [
        ((6, 3), {}),
        ((4, 3, 2, 2), {"channel_dim": 1}),
        ((2, 5, 3), {"batch_dims": 1, "correction": 0}),
        ((2, 3, 2, 3), {"channel_dim": 2, "batch_dims": 1}),
    ],
)
def test_gradients(shape, args):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(x):
        return tuple(ops.covariance(x, **args))

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_has_the_dtype_of_the_input(assert_close, dtype):
    x = samples(64, 7, dtype, 5).requires_grad_()
    weight = torch.randn(7, 7, dtype=torch.float64)
    (ops.covariance(x, dtype=torch.float64).covariance * weight).sum().backward()
    exact = x.detach().double().requires_grad_()
    (reference.covariance(exact).covariance * weight).sum().backward()
    assert x.grad.dtype == dtype
    assert_close(
        x.grad, exact.grad.to(dtype), torch.float32, factor=8e3 if dtype.itemsize == 2 else 1
    )


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_every_cpu_level(level):
    # A level is chosen once in a process; one that this machine lacks falls back to what it has.
    code = (
        "import torch\n"
        "from infoslice import ops, reference\n"
        "torch.manual_seed(0)\n"
        "cases = ((torch.float64, 1e-13), (torch.float16, 2e-6), (torch.float32, 2e-6))\n"
        "for dtype, bound in cases:\n"
        "    for shape in ((300, 45), (3, 45, 11, 9), (2, 33, 61, 43), (20000, 18)):\n"
        "        x = (torch.randn(shape) + 30).to(dtype)\n"
        "        result = ops.covariance(x, channel_dim=1).covariance\n"
        "        expected = reference.covariance(x, channel_dim=1).covariance\n"
        "        assert (result - expected).abs().max() <= bound * expected.abs().max()\n"
        "print(ops.build_info()['cpu_level'])\n"
    )
    environment = {**os.environ, "INFOSLICE_CPU_LEVEL": level}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    used = result.stdout.strip()
    assert used == "baseline" or (level != "baseline" and used in ("x86-64-v3", f"x86-64-{level}"))


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_first_samples_unlike_the_rest_cost_no_digits(layout):
    """Every slab of samples finds a shift of its own."""
    x = torch.randn(66000, 5)
    x[:200] += 1e6
    if layout == "columns":
        x = x.T.contiguous().T
    found = ops.covariance(x, dtype=torch.float64).covariance
    expected = reference.covariance(x).covariance
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
