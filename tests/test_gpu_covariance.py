"""covariance and its kin on a GPU."""

from __future__ import annotations

import pytest
import torch

from gpu_checks import BF16, F16, F32, F64, Case, close, gpu_tests, need
from infoslice import ops, reference


def case(title, make, of=F32, op="covariance", **keywords):
    bound = 1e-12 if of == F64 else 4e-6
    return Case(op, f"{title} {str(of).removeprefix('torch.')}", make, bound, keywords)


def rows(n, channels, dtype, offset=0.0):
    return lambda: [(torch.randn(n, channels, dtype=F64) + offset).to(dtype)]


def images(*shape, dtype=F32):
    return lambda: [(2 * torch.randn(shape, dtype=F64) + torch.rand(shape[1], 1, 1)).to(dtype)]


def strided(dtype):
    """Samples over two axes with gaps, the channel in the middle."""
    return lambda: [torch.randn(9, 2 * 37, 14, dtype=F64).to(dtype)[:, ::2, 1::2]]


def two(dtype, shape_x, shape_y, y_scale=1.0):
    def make():
        x = torch.randn(shape_x, dtype=F64)
        y = torch.randn(shape_y, dtype=F64) * y_scale + x.mean()
        return [x.to(dtype), y.to(dtype)]

    return make


CASES = [
    case(f"[{n}, {c}]", rows(n, c, dtype), dtype)
    for dtype in (F64, F32, BF16, F16)
    for n, c in [(2, 1), (100, 3), (1023, 33), (257, 64), (700, 130), (5000, 17)]
]
CASES += [
    case(f"[20000, {c}] at a mean of 30 deviations", rows(20000, c, dtype, 30.0), dtype)
    for dtype in (F64, F32, BF16, F16)
    for c in (5, 64)
]
CASES += [
    case("[3, 40, 9, 7]", images(3, 40, 9, 7, dtype=dtype), dtype, channel_dim=1)
    for dtype in (F64, F32, BF16, F16)
]
CASES += [
    case("[8, 64, 16, 16]", images(8, 64, 16, 16, dtype=dtype), dtype, channel_dim=1)
    for dtype in (BF16, F16)
]
CASES += [
    case("channels last", lambda: [images(3, 48, 8, 8)()[0].to(memory_format=torch.channels_last)],
         channel_dim=1),
    case("transposed", lambda: [torch.randn(40, 300).T]),
    case("transposed", lambda: [torch.randn(40, 300).bfloat16().T], BF16),
    case("strides", strided(F32), channel_dim=1),
    case("strides", strided(BF16), BF16, channel_dim=1),
    case("expanded samples", lambda: [torch.randn(1, 6, 19).expand(4, 6, 19)], channel_dim=-1),
    case("five problems", lambda: [torch.randn(5, 200, 24)], batch_dims=1),
    case("[2, 3] problems", lambda: [torch.randn(2, 3, 12, 10, 11).bfloat16()], BF16, batch_dims=2,
         channel_dim=-3),
    case("to float64", rows(300, 20, BF16), BF16, dtype=F64),
    case("to float64", rows(300, 20, F32), F32, dtype=F64),
    case("to float32", rows(300, 20, F64), F32, dtype=F32),
    case("correction 0", rows(3, 5, F32), correction=0),
]  # fmt: skip
CASES += [
    case("x and y", two(dtype, (700, 40), (700, 9)), dtype, "cross_covariance")
    for dtype in (F64, F32, BF16, F16)
]
CASES += [
    case("images", two(F16, (3, 20, 9, 5), (3, 7, 9, 5)), F16, "cross_covariance", channel_dim=1),
    case("problems", two(F32, (4, 90, 20), (4, 90, 33)), F32, "cross_covariance", batch_dims=1),
]
CASES += [
    case("3x3, padded", images(2, 5, 9, 8, dtype=dtype), dtype, "patch_covariance", kernel_size=3,
         padding=1)
    for dtype in (F64, F32, BF16, F16)
]  # fmt: skip
CASES += [
    case("5x5, stride 2, dilation 2", images(3, 4, 17, 15), F32, "patch_covariance", kernel_size=5,
         stride=2, dilation=2, padding=3),
    case("one dimension", lambda: [torch.randn(4, 6, 50)], F32, "patch_covariance", kernel_size=3),
    case("3x3", two(F32, (3, 6, 9, 9), (3, 5, 7, 7)), F32, "patch_cross_covariance",
         kernel_size=3),
    case("3x3", two(BF16, (3, 6, 9, 9), (3, 5, 7, 7)), BF16, "patch_cross_covariance",
         kernel_size=3),
]  # fmt: skip

test_cases = gpu_tests(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_nan_in_its_rows_and_columns(dtype, bad):
    x = torch.randn(300, 37).to(dtype)
    x[123, 5] = bad
    cov, mean = (r.cpu() for r in ops.covariance(x.cuda()))
    rest = torch.arange(37) != 5
    assert cov[5].isnan().all()
    assert cov[:, 5].isnan().all()
    assert mean[5].isnan()
    true = reference.covariance(x[:, rest])
    bound = 1e-12 if dtype == F64 else 4e-6
    close(cov[rest][:, rest], true.covariance, bound)
    close(mean[rest], true.mean, bound)
    assert not cov[rest][:, rest].isnan().any()


@pytest.mark.gpu
def test_gradients():
    x = torch.randn(60, 7, dtype=F64)
    grads = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        cov, mean = ops.covariance(leaf)
        (cov.square().sum() + mean.sum()).backward()
        grads.append(leaf.grad.cpu())
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.gpu
def test_refusals_are_those_of_the_cpu():
    x = torch.randn(5, 4, device="cuda")
    with pytest.raises(ValueError, match="covariance: x: expected"):
        ops.covariance(x[:1])
    with pytest.raises(TypeError, match="covariance: x: expected"):
        ops.covariance(x.int())
    with pytest.raises(RuntimeError, match="cross_covariance"):
        ops.cross_covariance(x, x.cpu())


# -- more than 2^31 elements -----------------------------------------------------------------------


def exact(x, channel_dim):
    """float64 covariance of a large tensor, a piece at a time."""
    channels = x.shape[channel_dim]
    n, sums = 0, torch.zeros(channels, dtype=F64, device=x.device)
    products = torch.zeros(channels, channels, dtype=F64, device=x.device)
    pieces = x.split(max(1, len(x) // 100))
    for piece in pieces:
        flat = piece.movedim(channel_dim, -1).reshape(-1, channels).double()
        n, sums = n + len(flat), sums + flat.sum(0)
        products += flat.mT @ flat
    mean = sums / n
    return (products - n * mean[:, None] * mean) / (n - 1), mean


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "channel_dim", "dtype"),
    [
        ((2**31 // 256 + 12345, 256), -1, BF16),
        ((2**31 // 96 + 12345, 96), -1, F32),
        ((34, 256, 500, 499), 1, BF16),
        ((3, 800, 1000, 900), 1, F16),
    ],
    ids=str,
)
def test_more_than_2_to_the_31_elements(shape, channel_dim, dtype):
    elements = torch.Size(shape).numel()
    assert elements > 2**31
    need(elements * dtype.itemsize * 1.5 + 8e9)
    x = torch.empty(shape, dtype=dtype, device="cuda")
    for piece in x.split(max(1, len(x) // 20)):
        piece.normal_()
    x[-max(1, len(x) // 50) :] *= 4  # whoever loses the end has another result
    cov, mean = ops.covariance(x, channel_dim=channel_dim)
    true, true_mean = exact(x, channel_dim)
    close(cov.cpu(), true.cpu(), 4e-6)
    assert (mean.double() - true_mean).abs().max() <= 4e-6 * true.diagonal().max().sqrt()
