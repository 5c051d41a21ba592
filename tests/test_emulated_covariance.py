"""The CUDA kernels of covariance on the CPU emulation, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emulation import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# max |error| / max |covariance|, whatever the means
BOUND = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}


def samples(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> torch.Tensor:
    """[..., samples, channels] of unit variance, correlated, with means of either sign."""
    x = torch.randn(shape, dtype=torch.float64)
    x[..., 1:] += 0.5 * x[..., :-1]
    return (x + mean * torch.sign(torch.randn(shape[-1], dtype=torch.float64))).to(dtype)


def raw(x: torch.Tensor) -> np.ndarray:
    """The memory of x, in its strides."""
    view = x.view(torch.int16) if x.dtype in (torch.bfloat16, torch.float16) else x
    return view.numpy()


def covariance(
    emu: Any,
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    channel: int = -1,
    batch: int = 0,
    correction: int = 1,
    wide: bool = True,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    name = str(x.dtype).removeprefix("torch.")
    args = (name, wide, channel % x.ndim, batch, correction, seed)
    *results, _ = emu.covariance(raw(x), None if y is None else raw(y), *args)
    cov, mean_x, mean_y = (torch.from_numpy(r) for r in results)
    return cov, mean_x, mean_y


def flat(x: torch.Tensor, channel: int, batch: int) -> torch.Tensor:
    """[items, samples, channels] in float64."""
    x = x.double().movedim(channel, -1)
    items = int(np.prod(x.shape[:batch]))
    return x.reshape(items, int(np.prod(x.shape[batch:-1])), x.shape[-1])


def check(
    emu: Any,
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    channel: int = -1,
    batch: int = 0,
    correction: int = 1,
    **options: Any,
) -> None:
    left = flat(x, channel, batch)
    right = left if y is None else flat(y, channel, batch)
    mean_x, mean_y = (s.mean(1, keepdim=True) for s in (left, right))
    expected = (left - mean_x).mT @ (right - mean_y) / (left.shape[1] - correction)
    cov, got_x, got_y = covariance(emu, x, y, channel, batch, correction, **options)
    bound = BOUND[x.dtype] if cov.dtype == torch.float64 else 2e-6
    error = (cov.double() - expected).abs().max().item()
    assert error <= bound * expected.abs().max().item()
    assert (got_x.double() - mean_x[:, 0]).abs().max() <= bound * left.abs().max()
    if y is None:
        assert torch.equal(cov, cov.mT)
    else:
        assert (got_y.double() - mean_y[:, 0]).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 8, 31, 63, 64, 65, 127, 128, 129, 200, 257])
@pytest.mark.parametrize(("n", "mean"), [(2, 0), (15, 100), (16, 1.5), (67, 4), (300, 100)])
def test_sizes_and_means(emu, dtype, channels, n, mean):
    x = samples((n, channels), dtype, mean)
    check(emu, x)
    check(emu, x.T.contiguous().T)  # along the samples


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0, 1, 3, 10, 100])
def test_many_samples(emu, dtype, mean):
    # more than a flush of the sums, and several splits; the tensor cores take their time here
    check(emu, samples((20_001 if dtype.itemsize > 2 else 2_501, 8), dtype, mean), wide=False)


def test_many_samples_on_tensor_cores(emu):
    check(emu, samples((16_500, 5), torch.bfloat16))


def test_floats_keep_their_digits_on_tensor_cores(emu):
    # Variances are sums of positive terms: what a split into tf32 or a truncation loses adds up.
    x = torch.randn(4096, 3)
    for mean in (0.0, 100.0):
        shifted = x + mean
        cov = covariance(emu, shifted)[0][0]
        expected = torch.cov(shifted.double().T)
        assert ((cov - expected).diagonal().abs() <= 1e-6 * expected.diagonal()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (33, 64), (64, 130), (130, 5), (129, 129)])
def test_cross(emu, dtype, rows, columns):
    x, y = samples((131, rows), dtype, 3), samples((131, columns), dtype, 50)
    x[:, 0] = y[:, 0]
    check(emu, x, y)
    check(emu, x.T.contiguous().T, y)
    check(emu, x, y.T.contiguous().T)


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "strided rows": lambda x: torch.zeros(2 * x.shape[0], x.shape[1], dtype=x.dtype)[::2].copy_(x),
    "strided columns": lambda x: torch.zeros(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x),
    "unaligned": lambda x: torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x),
    "rows within a buffer": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4))[1:-4, 3:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [40, 136])
def test_strides(emu, layout, dtype, channels):
    x = samples((96, channels), dtype, 10)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    check(emu, view)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 24, 4, 8), (2, 70, 7, 7), (5, 9, 33), (2, 6, 3, 4, 5)])
def test_images(emu, dtype, shape):
    x = (torch.randn(shape, dtype=torch.float64) + 5).to(dtype)
    check(emu, x, channel=1)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    check(emu, last, channel=1)
    check(emu, last, x[:, :3], channel=1)
    backwards = x.permute(*reversed(range(x.ndim))).contiguous()
    check(emu, backwards.permute(*reversed(range(x.ndim))), channel=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 20, 16), (2, 3, 50, 5), (1, 33, 130), (9, 5, 70)])
@pytest.mark.parametrize("channel", [-1, -2])
def test_batches(emu, dtype, shape, channel):
    batch = len(shape) - 2
    x = samples(shape, dtype, 3)
    check(emu, x, channel=channel, batch=batch)
    check(emu, x.expand(3, *shape), channel=channel, batch=batch + 1)
    check(emu, x, x.flip(channel), channel=channel, batch=batch, correction=0)


GEOMETRIES = {  # kernel, stride, padding, dilation
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": ((3, 2), (2, 3), (0, 1), (1, 1)),
    "dilated": ((2, 3), (1, 2), (3, 2), (2, 3)),
    "mostly padding": ((5, 5), (4, 4), (6, 7), (1, 1)),
    "a pixel": ((1, 1), (1, 1), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "cropped"])
def test_patches(emu, dtype, geometry, layout):
    kernel, stride, padding, dilation = GEOMETRIES[geometry]
    x = (torch.randn(2, 9, 8, 11, dtype=torch.float64) + 3).to(dtype)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "cropped":
        x = x[:, 1:7, 2:, 1:-1]
    unfolded = torch.nn.functional.unfold(x.double(), kernel, dilation, padding, stride)
    left = unfolded.movedim(1, -1).reshape(-1, unfolded.shape[1])
    places = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    y = (torch.randn(2, 5, *places, dtype=torch.float64) - 4).to(dtype)
    y[:, 0] += y[:, 1]
    for other in (None, y, y.contiguous(memory_format=torch.channels_last)):
        right = left if other is None else y.double().movedim(1, -1).reshape(-1, 5)
        name = str(dtype).removeprefix("torch.")
        args = (name, True, [*kernel, *stride, *padding, *dilation], 1, len(geometry))
        cov, mean_x, mean_y, _ = emu.patch_covariance(
            raw(x), None if other is None else raw(other), *args
        )
        expected = (left - left.mean(0)).T @ (right - right.mean(0)) / (len(left) - 1)
        error = (torch.from_numpy(cov) - expected).abs().max().item()
        assert error <= BOUND[dtype] * left.var(0).max().sqrt() * right.var(0).max().sqrt()
        assert (torch.from_numpy(mean_x) - left.mean(0)).abs().max() <= BOUND[dtype] * 8
        if other is not None:
            assert (torch.from_numpy(mean_y) - right.mean(0)).abs().max() <= BOUND[dtype] * 8


def test_no_items_no_launch(emu):
    cov, mean, _ = covariance(emu, torch.empty(0, 5, 3), batch=1)
    assert cov.shape == (0, 3, 3)
    assert mean.shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_channels_have_no_variance(emu, dtype):
    x = samples((500, 20), dtype)
    x[:, 3] = 77
    x[:, 4] = 0
    cov, mean, _ = covariance(emu, x)
    assert (cov[0, 3:5] == 0).all()
    assert (cov[0, :, 3:5] == 0).all()
    assert mean[0, 3:5].tolist() == [77, 0]
    assert (covariance(emu, x[:1].expand(9, 20))[0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("channels", [10, 70])
@pytest.mark.parametrize("sample", [0, 37])  # one that the pilots are chosen from, and another
def test_what_is_not_finite_stays_in_its_channel(emu, dtype, value, channels, sample):
    x = samples((2, 100, channels), dtype, 4)
    good, good_mean, _ = covariance(emu, x, batch=1)
    bad = x.clone()
    bad[1, sample, 5] = value
    cov, mean, _ = covariance(emu, bad, batch=1)
    assert cov[1, 5].isnan().all()
    assert cov[1, :, 5].isnan().all()
    assert mean[1, 5].isnan()
    cov[1, 5], cov[1, :, 5], mean[1, 5] = good[1, 5], good[1, :, 5], good_mean[1, 5]
    assert torch.equal(cov, good)
    assert torch.equal(mean, good_mean)
    cross, mean_x, mean_y = covariance(emu, x, bad, batch=1)
    assert cross[1, :, 5].isnan().all()
    assert cross[1, 5, :5].isfinite().all()
    assert mean_x.isfinite().all()
    assert mean_y[1, 5].isnan()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_what_float_sums_cannot_hold_is_refused(emu, scale):
    x = samples((200, 8), torch.float32)
    good = covariance(emu, x)[0]
    x[:, 2] *= scale
    cov, mean, _ = covariance(emu, x)
    assert cov[0, 2].isnan().all()
    assert cov[0, :, 2].isnan().all()
    assert mean.isfinite().all()
    rest = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(cov[0][rest][:, rest], good[0][rest][:, rest])
    check(emu, x.double())


def test_what_the_result_cannot_hold_is_refused(emu):
    x = samples((200, 8), torch.float64)
    x[:, 2] *= 1e30
    cov = covariance(emu, x, wide=False)[0][0]
    assert cov[2, 2].isnan()
    assert cov[2, 3].isfinite()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_depend_on_the_schedule(emu, dtype):
    x = samples((2, 150, 70), dtype, 2)
    first = covariance(emu, x, batch=1)
    for seed in range(1, 4):
        again = covariance(emu, x, batch=1, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
