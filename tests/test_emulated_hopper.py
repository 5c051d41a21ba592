"""The Hopper kernels of covariance on the CPU emulation of TMA, barriers and wgmma."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emulation import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

DTYPES = [torch.bfloat16, torch.float16]


def samples(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> torch.Tensor:
    """[..., samples, channels] of unit variance, correlated, with means of either sign."""
    x = torch.randn(shape, dtype=torch.float64)
    x[..., 1:] += 0.5 * x[..., :-1]
    return (x + mean * torch.sign(torch.randn(shape[-1], dtype=torch.float64))).to(dtype)


def covariance(
    emu: Any,
    x: torch.Tensor,
    channel: int = -1,
    batch: int = 0,
    correction: int = 1,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Results, and for each item and 128 channels whether they were left to the portable kernel."""
    name = str(x.dtype).removeprefix("torch.")
    raw = x.view(torch.int16).numpy()
    cov, mean, shifted = emu.covariance_hopper(raw, name, channel % x.ndim, batch, correction, seed)
    return torch.from_numpy(cov), torch.from_numpy(mean), shifted.tolist()


def check(
    emu: Any, x: torch.Tensor, channel: int = -1, batch: int = 0, **options: Any
) -> list[list[int]]:
    flat = x.double().movedim(channel, -1)
    items = int(np.prod(x.shape[:batch]))
    flat = flat.reshape(items, int(np.prod(flat.shape[batch:-1])), flat.shape[-1])
    mean = flat.mean(1, keepdim=True)
    divisor = flat.shape[1] - options.get("correction", 1)
    expected = (flat - mean).mT @ (flat - mean) / divisor
    cov, got_mean, shifted = covariance(emu, x, channel, batch, **options)
    assert torch.equal(cov, cov.mT)
    assert (cov - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert (got_mean - mean[:, 0]).abs().max() <= 2e-6 * flat.abs().max()
    return shifted


def rows(x: torch.Tensor) -> torch.Tensor:
    """The same values, channels contiguous, rows aligned to 16 bytes."""
    wide = torch.full((x.shape[0], -(-x.shape[1] // 8) * 8), torch.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def columns(x: torch.Tensor) -> torch.Tensor:
    """The same values, samples contiguous."""
    return rows(x.T).T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [rows, columns])
@pytest.mark.parametrize("channels", [65, 128, 129, 264])
@pytest.mark.parametrize("n", [40, 64, 65, 300])
def test_sizes(emu, dtype, layout, channels, n):
    shifted = check(emu, layout(samples((n, channels), dtype)), seed=n)
    assert not np.any(shifted)


@pytest.mark.parametrize("layout", [rows, columns])
@pytest.mark.parametrize("n", [1, 2, 7, 15])
def test_few_samples(emu, layout, n):
    check(emu, layout(samples((n, 136), torch.bfloat16)), correction=0)


def test_many_samples(emu):
    # more than a flush of the sums to memory, in two splits; the ring turns hundreds of times
    shifted = check(emu, rows(samples((33_000, 72), torch.bfloat16)))
    assert not np.any(shifted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0.25, 0.5])
def test_means_that_need_no_pilot(emu, dtype, mean):
    x = samples((400, 130), dtype, mean)
    assert not np.any(check(emu, rows(x)))
    assert not np.any(check(emu, columns(x)))
    assert not np.any(check(emu, rows(x.relu())))
    check(emu, rows(samples((300, 130), dtype, 1.8)))  # some do, some do not


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [rows, columns])
def test_tiles_with_a_pilot_are_left_to_the_portable_kernel(emu, dtype, layout):
    x = samples((200, 400), dtype)
    x[:, 130] += 100
    assert check(emu, layout(x)) == [[0, 1, 0, 0]]
    x[:, 399] = 3  # constant: no variance at all
    assert check(emu, layout(x)) == [[0, 1, 0, 1]]
    assert check(emu, layout(samples((100, 140), dtype, 50))) == [[1, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 100, 136), (2, 3, 50, 72), (9, 40, 130)])
def test_batches(emu, dtype, shape):
    batch = len(shape) - 2
    wide = -(-shape[-1] // 8) * 8
    x = samples((*shape[:-1], wide), dtype)
    x[-1, ..., 3] += 80  # a pilot in the last item only
    shifted = check(emu, x[..., : shape[-1]], batch=batch)
    assert np.any(shifted[-1])
    assert not np.any(shifted[0])
    check(emu, x[..., : shape[-1]].transpose(0, batch - 1), batch=batch)
    along = samples((*shape[:-2], shape[-1], -(-shape[-2] // 8) * 8), dtype)[..., : shape[-2]]
    check(emu, along, channel=-2, batch=batch, correction=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(3, 8, 9), (2, 12, 12), (70, 2, 4), (2, 16, 24)])
def test_images(emu, dtype, size):
    images, height, width = size
    x = torch.randn(images, 136, height, width, dtype=torch.float64).to(dtype)
    assert not np.any(check(emu, x, channel=1))
    last = x.permute(0, 2, 3, 1).contiguous()
    assert not np.any(check(emu, last))
    if width % 8 == 0:  # axes that cannot be merged
        check(emu, x[:, :, 1:], channel=1)
        check(emu, x[::2, :, ::2], channel=1)
        check(emu, last[:, ::2, 1:])


ZEROS = torch.zeros(64, 400, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "x",
    [
        ZEROS[:50, :131].contiguous(),  # rows not aligned
        ZEROS.view(-1)[1 : 50 * 136 + 1].view(50, 136),
        ZEROS[:50, :136].expand(3, 50, 136),  # a stride of zero
        ZEROS[:50, :272:2],  # nothing contiguous
        ZEROS[:50, :64],  # left to the smaller tiles of the portable kernel
        torch.zeros(2, 3, 4, 5, 6, 128, dtype=torch.bfloat16)[:, ::2, ::2, ::2, ::2],
    ],
    ids=["rows", "base", "stride", "contiguous", "few", "axes"],
)
def test_what_tma_cannot_read_is_refused(emu, x):
    with pytest.raises(ValueError, match="not supported"):
        covariance(emu, x, batch=x.ndim - 2 if x.ndim == 3 else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sample", [0, 37])  # one that the pilots are chosen from, and another
def test_what_is_not_finite_stays_in_its_channel(emu, dtype, value, sample):
    x = samples((2, 100, 136), dtype)
    good, good_mean, _ = covariance(emu, x, batch=1)
    x[1, sample, 5] = value
    cov, mean, _ = covariance(emu, x, batch=1)
    assert cov[1, 5].isnan().all()
    assert cov[1, :, 5].isnan().all()
    assert mean[1, 5].isnan()
    cov[1, 5], cov[1, :, 5], mean[1, 5] = good[1, 5], good[1, :, 5], good_mean[1, 5]
    assert (cov - good).abs().max() <= 4e-6 * good.abs().max()  # maybe by the other kernel
    assert (mean - good_mean).abs().max() <= 1e-6


@pytest.mark.parametrize("layout", [rows, columns])
def test_results_do_not_depend_on_the_schedule(emu, layout):
    x = samples((300, 264), torch.bfloat16)
    x[:, 140] += 100
    first = covariance(emu, layout(x))
    for seed in range(1, 4):
        again = covariance(emu, layout(x), seed=seed)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
