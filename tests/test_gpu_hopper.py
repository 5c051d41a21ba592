"""The covariance by TMA and wgmma on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch

from bench import hopper
from gpu_checks import BF16, F16, bits, close
from infoslice import ops, reference

pytestmark = pytest.mark.gpu

# shape, axis of the channels, mean over standard deviation
INPUTS = [
    ((64, 64), -1, 0.0),
    ((1000, 128), -1, 0.0),
    ((4097, 256), -1, 0.0),
    ((20000, 200), -1, 0.3),
    ((513, 1032), -1, 0.0),
    ((3, 64, 16, 16), 1, 0.0),
    ((5, 136, 8, 24), 1, 0.3),
    ((7, 512, 14, 16), 1, 0.0),
    ((6000, 96), -1, 30.0),
]


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if not hopper.works():
        pytest.skip("no Hopper GPU, or infoslice was built without sm_90a")


def values(shape, channel_dim, offset, dtype):
    x = torch.randn(shape, dtype=torch.float64) + offset
    scales = 1 + torch.rand(shape[channel_dim], dtype=torch.float64)
    return (x.movedim(channel_dim, -1) * scales).movedim(-1, channel_dim).contiguous().to(dtype)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("shape", "channel_dim", "offset"), INPUTS, ids=str)
def test_values(shape, channel_dim, offset, dtype):
    x = values(shape, channel_dim, offset, dtype)
    found = hopper.covariance(x.cuda(), channel_dim)
    if found is None:
        pytest.skip("this layout is not for TMA")
    true = reference.covariance(x, channel_dim=channel_dim)
    close(found[0].cpu(), true.covariance, 4e-6)
    close(found[1].cpu(), true.mean, 4e-6)
    assert torch.equal(found[0], found[0].mT)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_determinism_and_another_stream(dtype):
    x = values((30000, 384), -1, 0.0, dtype).cuda()
    first = hopper.covariance(x)
    assert first
    for _ in range(5):
        other = torch.zeros_like(x)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            other.copy_(x)
            again = hopper.covariance(other)
        stream.synchronize()
        assert again
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, again, strict=True))


def test_many_channels_and_samples():
    x = torch.empty(65536, 4096, dtype=BF16, device="cuda").normal_()
    found = hopper.covariance(x)
    assert found
    cov, mean = ops.covariance(x)
    scale = cov.abs().max()
    assert (found[0] - cov).abs().max() <= 4e-6 * scale
    assert (found[1] - mean).abs().max() <= 4e-6
    first = x[:, :64].double()
    true = (first - first.mean(0)).mT @ (x.double() - x.double().mean(0)) / (len(x) - 1)
    close(found[0][:64].cpu(), true.cpu(), 4e-6)
