"""What covariance, cross_covariance and the patch forms refuse, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoslice import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_no_gradient_is_said_not_dropped():
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    y = torch.randn(4, 2, 6, 6)
    calls = [
        lambda: ops.cross_covariance(x, y, channel_dim=1),
        lambda: ops.cross_covariance(y, x, channel_dim=1),
        lambda: ops.patch_covariance(x, 3),
        lambda: ops.patch_cross_covariance(x, y, 1),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="requires grad"):
            call()
        with torch.no_grad():
            assert not call().covariance.requires_grad


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of torch's own, at the first dual tensor
def test_forward_mode_is_refused_not_dropped():
    x = torch.randn(4, 3, 6, 6)
    for function in (
        lambda x: ops.covariance(x, channel_dim=1).covariance,
        lambda x: ops.cross_covariance(x, x).covariance,
        lambda x: ops.patch_covariance(x, 2).covariance,
    ):
        with pytest.raises(RuntimeError, match=r"jvp|requires grad"):
            torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():  # no tangent, nothing to drop
        assert torch.equal(ops.covariance(x).mean, torch.from_numpy(ops.covariance(x.numpy()).mean))


BAD = [
    (
        ValueError,
        r"covariance: x: expected at least 2 samples for correction 1, got 1",
        lambda t: ops.covariance(t(1, 3)),
    ),
    (
        ValueError,
        "covariance: x: expected at least 1 samples",
        lambda t: ops.covariance(t(0, 3), correction=0),
    ),
    (ValueError, "covariance: x: expected at least 1 channel", lambda t: ops.covariance(t(4, 0))),
    (ValueError, "covariance: x: expected at least 2 dimensions", lambda t: ops.covariance(t(4))),
    (
        ValueError,
        "covariance: x: expected at least 3 dimensions",
        lambda t: ops.covariance(t(4, 3), batch_dims=1),
    ),
    (
        ValueError,
        "covariance: batch_dims: expected 0 or more, got -1",
        lambda t: ops.covariance(t(4, 3), batch_dims=-1),
    ),
    (
        ValueError,
        "covariance: correction: expected 0 or more, got -1",
        lambda t: ops.covariance(t(4, 3), correction=-1),
    ),
    (
        ValueError,
        "covariance: channel_dim: expected a dimension",
        lambda t: ops.covariance(t(4, 3), channel_dim=2),
    ),
    (
        ValueError,
        "covariance: channel_dim: expected a dimension",
        lambda t: ops.covariance(t(4, 3), channel_dim=-3),
    ),
    (
        ValueError,
        "covariance: channel_dim",
        lambda t: ops.covariance(t(4, 3, 2), channel_dim=0, batch_dims=1),
    ),
    (
        TypeError,
        "covariance: x: expected float64, float32, bfloat16, float16, got int64",
        lambda t: ops.covariance(t(4, 3, kind="int64")),
    ),
    (
        ValueError,
        "cross_covariance: y: expected the shape of x",
        lambda t: ops.cross_covariance(t(4, 3), t(5, 3)),
    ),
    (
        ValueError,
        "cross_covariance: y: expected the shape of x",
        lambda t: ops.cross_covariance(t(4, 3), t(4)),
    ),
    (
        ValueError,
        "cross_covariance: y: expected the shape of x",
        lambda t: ops.cross_covariance(t(4, 3), t(4, 0)),
    ),
    (
        TypeError,
        "cross_covariance: y: expected the dtype of x, float32, got float64",
        lambda t: ops.cross_covariance(t(4, 3), t(4, 3, kind="float64")),
    ),
    (
        ValueError,
        r"patch_covariance: x: expected \[N, C, H, W\]",
        lambda t: ops.patch_covariance(t(4, 3), 1),
    ),
    (
        ValueError,
        "patch_covariance: kernel_size: expected a kernel within",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 5),
    ),
    (
        ValueError,
        "patch_covariance: kernel_size: expected 1 or more",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 0),
    ),
    (
        ValueError,
        "patch_covariance: kernel_size: expected 2 values",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), (1, 2, 3)),
    ),
    (
        ValueError,
        "patch_covariance: stride: expected 1 or more",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 2, stride=0),
    ),
    (
        ValueError,
        "patch_covariance: padding: expected 0 or more",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 2, padding=(0, -1)),
    ),
    (
        ValueError,
        "patch_covariance: dilation: expected 1 or more",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 2, dilation=0),
    ),
    (
        ValueError,
        "patch_cross_covariance: y: expected the output positions",
        lambda t: ops.patch_cross_covariance(t(1, 1, 4, 4), t(1, 1, 4, 4), 2),
    ),
    (
        ValueError,
        "patch_covariance: x: expected at least 2 samples",
        lambda t: ops.patch_covariance(t(1, 1, 4, 4), 4),
    ),
]


@pytest.mark.parametrize("route", ["torch", "numpy"])
@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(route, error, message, call):
    def make(*shape, kind="float32"):
        array = np.ones(shape, dtype=kind)
        return torch.from_numpy(array) if route == "torch" else array

    with pytest.raises(error, match=message):
        call(make)


def test_bad_dtype_argument_and_types():
    with pytest.raises(
        TypeError, match="covariance: dtype: expected float64 or float32, got float16"
    ):
        ops.covariance(torch.randn(4, 3), dtype=torch.float16)
    with pytest.raises(
        TypeError, match="covariance: dtype: expected float64 or float32, got float16"
    ):
        ops.covariance(np.ones((4, 3)), dtype=np.float16)
    with pytest.raises(TypeError, match="expected a NumPy array or a torch tensor, got list"):
        ops.covariance([[1.0, 2.0]])
    for x in (torch.randn(4, 3), np.ones((4, 3))):
        with pytest.raises(TypeError, match=r"covariance: correction: expected .*int.*, got float"):
            ops.covariance(x, correction=0.5)
        with pytest.raises(ValueError, match=r"covariance: correction: expected .*64 bits"):
            ops.covariance(x, correction=2**70)
    with pytest.raises(TypeError, match=r"cross_covariance: y: expected Tensor, got ndarray"):
        ops.cross_covariance(torch.randn(4, 3), np.ones((4, 3)))
    with pytest.raises(
        TypeError, match=r"cross_covariance: y: expected a NumPy array .* got Tensor"
    ):
        ops.cross_covariance(np.ones((4, 3)), torch.randn(4, 3))
    with pytest.raises(TypeError, match="array of numbers"):
        ops.covariance(np.array([[None, 1], [2, 3]], dtype=object))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [(0, 0), (299, 17), (150, 36)])
def test_nan_and_inf_are_named(value, dtype, at):
    x = torch.randn(300, 37).to(dtype)
    x[at] = value
    message = f"covariance: x: expected finite values, got NaN or Inf in channel {at[1]}$"
    with pytest.raises(ValueError, match=message):
        ops.covariance(x)
    with pytest.raises(ValueError, match=message):
        ops.covariance(x.T.contiguous().T)


def test_nan_is_named_in_batches_y_and_patches():
    x = torch.randn(2, 3, 40, 5)
    x[1, 2, 7, 4] = float("nan")
    with pytest.raises(ValueError, match=r"in channel 4 of batch item \[1, 2\]"):
        ops.covariance(x, batch_dims=2)
    clean = torch.randn(2, 3, 40, 5)
    with pytest.raises(ValueError, match="cross_covariance: y: expected finite values"):
        ops.cross_covariance(clean, x, batch_dims=2)
    with pytest.raises(ValueError, match=r"patch_covariance: x: .* in channel 2$"):
        ops.patch_covariance(x, 3, padding=1)


def test_overflow_is_refused():
    x = torch.randn(100, 3, dtype=torch.float64) * 1e30
    with pytest.raises(
        ValueError, match="overflow in channel 0; scale the data or pass dtype=float64"
    ):
        ops.covariance(x, dtype=torch.float32)
    assert ops.covariance(x).covariance.isfinite().all()
    with pytest.raises(ValueError, match="overflow"):
        ops.covariance(x * 1e200)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_geometry_that_overflows_is_refused(name):
    x = torch.randn(2, 1, 8)
    for value in (2**62, 2**63 - 1):
        with pytest.raises(ValueError, match=f"patch_covariance: {name}: expected .* or less"):
            ops.patch_covariance(x, 3, **{name: value})


def test_a_mean_of_y_out_of_range_is_told():
    x, y = np.random.default_rng(0).standard_normal((20, 2)), np.full((20, 3), 1.0)
    y[:, 1] = 1e300
    with pytest.raises(ValueError, match=r"cross_covariance: y: .* an overflow in channel 1;"):
        ops.cross_covariance(x, y, dtype=np.float32)
    with pytest.raises(ValueError, match=r"cross_covariance: x: .* an overflow in channel 1;"):
        ops.cross_covariance(y, x, dtype=np.float32)


def test_elements_without_bytes_are_refused():
    nothing = np.zeros((3, 2), np.dtype([]))
    with pytest.raises(TypeError, match="no bytes"):
        ops.covariance(nothing)
    with pytest.raises(TypeError, match="no bytes"):
        ops.slice_channels([nothing], [[0]], [[np.array([0, 2])]])
