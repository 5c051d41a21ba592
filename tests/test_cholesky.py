"""cholesky and logdet against float64 references, LAPACK and their own algebra."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from infoslice import ops, reference

ORDERS = [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
DTYPES = [torch.float64, torch.float32]


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def assert_factors(a: torch.Tensor, factor: torch.Tensor) -> None:
    """|L L' - A| <= 4 d eps max A_ii in all entries (Higham, 10.1), L lower triangular."""
    d = a.shape[-1]
    low = a.double().tril()
    error = factor.double() @ factor.double().mT - (low + low.tril(-1).mT)
    assert factor.dtype == a.dtype
    assert torch.equal(factor, factor.tril())
    scale = a.double().diagonal(dim1=-2, dim2=-1).amax()
    assert error.abs().max() <= 4 * d * eps(a.dtype) * scale


def assert_logdet(value: torch.Tensor, a: torch.Tensor, condition: float) -> None:
    """Within 4 d eps cond(A) of LAPACK's in float64 on the very same entries."""
    low = a.double().tril()
    sign, expected = np.linalg.slogdet((low + low.tril(-1).mT).numpy())
    assert (sign == 1).all()
    bound = 4 * a.shape[-1] * eps(a.dtype) * condition
    bound += eps(a.dtype) * np.abs(expected).max(initial=0)
    assert value.dtype == a.dtype
    assert np.abs(value.double().numpy() - expected).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", ORDERS)
def test_orders_and_batches(d, dtype, spd):
    for batch in [(), (1,), (2, 3), (19,)]:
        a = spd(d, 100.0, batch).to(dtype)
        factor, info = ops.cholesky(a)
        value, info_of_logdet = ops.logdet(a)
        assert factor.shape == a.shape
        assert value.shape == info.shape == a.shape[:-2]
        assert info.dtype == torch.int32
        assert not info.any()
        assert torch.equal(info, info_of_logdet)
        assert_factors(a, factor)
        assert_logdet(value, a, 100.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand(dtype, spd):
    a = spd(1000, 1e3).to(dtype)
    assert_factors(a, ops.cholesky(a).factor)
    assert_logdet(ops.logdet(a).logdet, a, 1e3)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [5, 40, 100])
def test_conditions(d, dtype, condition, spd):
    a = spd(d, condition, (7,)).to(dtype)
    if dtype == torch.float32 and condition == 1e6:
        # eps cond = 0.1: rounding the input itself may have cost definiteness
        a = a + 1e-5 * torch.eye(d)
    factor, info = ops.cholesky(a)
    assert not info.any()
    assert_factors(a, factor)
    assert_logdet(ops.logdet(a).logdet, a, condition)


@pytest.mark.parametrize("d", [3, 20, 33, 70])
def test_independent_judges(d, spd):
    a = spd(d, 50.0, (4,))
    factor = ops.cholesky(a).factor
    for b in range(4):
        judge = scipy.linalg.cholesky(a[b].numpy(), lower=True)
        np.testing.assert_allclose(factor[b].numpy(), judge, rtol=0, atol=1e-12)
    torch.testing.assert_close(factor, torch.linalg.cholesky(a), rtol=0, atol=1e-12)
    torch.testing.assert_close(factor, reference.cholesky(a).factor, rtol=0, atol=1e-12)
    value = ops.logdet(a).logdet
    torch.testing.assert_close(value, torch.logdet(a), rtol=0, atol=1e-11)
    torch.testing.assert_close(value, reference.logdet(a).logdet, rtol=0, atol=1e-11)


@pytest.mark.parametrize("d", [4, 33, 65])
def test_only_the_lower_triangle_is_read(d, spd):
    a = spd(d, 10.0, (3,))
    spoilt = torch.where(torch.ones(d, d).triu(1).bool(), torch.nan, a)
    for f in (ops.cholesky, ops.logdet):
        assert torch.equal(f(spoilt)[0], f(a)[0])


@pytest.mark.parametrize("d", [1, 2, 6, 33, 70, 129])
def test_the_first_bad_minor_is_named(d, spd):
    for k in sorted({1, 2, d // 2 + 1, d} & set(range(1, d + 1))):
        for bad in (-1.0, 0.0, torch.nan, torch.inf):
            a = spd(d, 10.0, (5,))
            good = ops.cholesky(a).factor, ops.logdet(a).logdet
            if bad == 0.0:  # a variable without variance
                a[2, k - 1, :] = a[2, :, k - 1] = 0
            else:
                a[2, k - 1, k - 1] = bad
            factor, info = ops.cholesky(a)
            value, info_of_logdet = ops.logdet(a)
            assert info.tolist() == info_of_logdet.tolist() == [0, 0, k, 0, 0]
            lower = torch.ones(d, d).tril().bool()
            assert factor[2][lower].isnan().all()
            assert (factor[2][~lower] == 0).all()
            assert value[2].isnan()
            others = [0, 1, 3, 4]
            assert torch.equal(factor[others], good[0][others])
            assert torch.equal(value[others], good[1][others])


@pytest.mark.parametrize("d", [5, 64, 65])
def test_a_nan_anywhere_in_the_lower_triangle_is_found(d, spd):
    a = spd(d, 10.0)
    rows, columns = torch.tril_indices(d, d).tolist()
    some = range(0, len(rows), max(1, len(rows) // 40))
    spoilt = a.repeat(len(some), 1, 1)
    for b, e in enumerate(some):
        spoilt[b, rows[e], columns[e]] = torch.nan
    _, info = ops.cholesky(spoilt)
    assert info.tolist() == [max(rows[e], columns[e]) + 1 for e in some]


def test_logdet_beyond_the_range_of_the_determinant():
    scales = torch.logspace(-300, 300, 61, dtype=torch.float64)
    a = scales.diag_embed().repeat(3, 1, 1)
    a[1] *= 1e-7
    a[2] *= 1e7
    expected = scales.log().sum()
    value = ops.logdet(a).logdet
    shift = 61 * np.log(1e7)
    torch.testing.assert_close(
        value, torch.stack([expected, expected - shift, expected + shift]), rtol=1e-13, atol=1e-9
    )
    tiny = torch.full((4, 1, 1), 5e-324, dtype=torch.float64)  # the smallest subnormal
    assert torch.allclose(ops.logdet(tiny).logdet, tiny.flatten().log(), rtol=1e-15, atol=0)
    float32 = torch.full((1, 40), 1e-30).diag_embed()
    torch.testing.assert_close(
        ops.logdet(float32).logdet, torch.tensor([40 * np.log(1e-30)]).float()
    )


def test_algebra_of_the_logdet(spd):
    a, b = spd(12, 30.0, (6,)), spd(12, 30.0, (6,))
    root = torch.linalg.cholesky(b)
    product = root.mT @ a @ root  # its determinant is det(A) det(B)
    value = ops.logdet(a).logdet
    torch.testing.assert_close(
        ops.logdet((product + product.mT) / 2).logdet,
        value + ops.logdet(b).logdet,
        rtol=0,
        atol=1e-11,
    )
    torch.testing.assert_close(ops.logdet(3.0 * a).logdet, value + 12 * np.log(3.0))
    # Schur: det A = det A11 det (A22 - A21 A11^-1 A12)
    corner = a[:, 5:, 5:] - a[:, 5:, :5] @ torch.linalg.solve(a[:, :5, :5], a[:, :5, 5:])
    parts = ops.logdet(a[:, :5, :5]).logdet + ops.logdet(corner).logdet
    torch.testing.assert_close(parts, value, rtol=0, atol=1e-12)
    order = torch.randperm(12)
    torch.testing.assert_close(ops.logdet(a[:, order][:, :, order]).logdet, value)


def test_any_strides(spd):
    base = spd(20, 10.0, (4, 6))
    views = [
        base.mT,
        base[::2, 1::3],
        base[..., 3:11, 3:11],
        base[..., ::2, ::2],
        base[0, 0].expand(5, 20, 20),
        base.flip(-1).flip(-2),
        base.permute(1, 0, 2, 3),
    ]
    for a in views:
        before = a.clone()
        for f in (ops.cholesky, ops.logdet):
            expected = f(a.contiguous())[0]
            assert torch.equal(f(a)[0], expected)
            assert torch.equal(torch.from_numpy(f(a.numpy())[0]), expected)
        assert torch.equal(a, before)


def test_numpy_in_numpy_out(spd):
    a = spd(9, 10.0, (2,)).numpy()
    for dtype in (np.float64, np.float32):
        factor, info = ops.cholesky(a.astype(dtype))
        assert type(factor) is np.ndarray
        assert factor.dtype == dtype
        assert info.dtype == np.int32
        assert info.shape == (2,)
        value, _ = ops.logdet(a.astype(dtype))
        np.testing.assert_allclose(value, np.linalg.slogdet(a)[1], rtol=1e-5)


def test_results_do_not_depend_on_threads_or_company(spd):
    a = spd(48, 100.0, (600,)).float()
    one = ops.cholesky(a).factor, ops.logdet(a).logdet
    torch.set_num_threads(3)
    try:
        many = ops.cholesky(a).factor, ops.logdet(a).logdet
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])
    few = ops.cholesky(a[[17, 300]]).factor
    assert torch.equal(few, one[0][[17, 300]])


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_every_cpu_level(level, spd, tmp_path):
    batches = [spd(d, 100.0, (batch,)) for d, batch in [(6, 9), (33, 21), (64, 3), (129, 2)]]
    torch.save(batches, tmp_path / "in.pt")
    code = f"""
import torch
from infoslice import ops
batches = torch.load(r"{tmp_path / "in.pt"}")
dtypes, functions = (torch.float32, torch.float64), (ops.cholesky, ops.logdet)
out = [tuple(f(a.to(t))[0] for t in dtypes for f in functions) for a in batches]
torch.save(out, r"{tmp_path / "out.pt"}")
"""
    environment = {**os.environ, "INFOSLICE_CPU_LEVEL": level}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    for a, results in zip(batches, torch.load(tmp_path / "out.pt"), strict=True):
        for dtype, (factor, value) in zip(
            (torch.float32, torch.float64), (results[:2], results[2:]), strict=True
        ):
            assert_factors(a.to(dtype), factor)
            assert_logdet(value, a.to(dtype), 100.0)


def test_empty_batches():
    a = torch.empty(0, 3, 5, 5)
    assert ops.cholesky(a).factor.shape == (0, 3, 5, 5)
    assert ops.logdet(a).logdet.shape == ops.logdet(a).info.shape == (0, 3)
    assert ops.logdet(a.numpy()).logdet.shape == (0, 3)


@pytest.mark.parametrize("name", ["cholesky", "logdet"])
@pytest.mark.parametrize(
    ("a", "error", "text"),
    [
        (torch.eye(3)[:2], ValueError, r"square matrices .* got shape \[2, 3\]"),
        (torch.ones(4), ValueError, r"at least 2 dimensions, .* got shape \[4\]"),
        (torch.empty(2, 0, 0), ValueError, r"d >= 1, got shape \[2, 0, 0\]"),
        (torch.eye(2, dtype=torch.int64), TypeError, "float32, float64, got int64"),
        (torch.eye(2, dtype=torch.bfloat16), TypeError, "float32, float64, got bfloat16"),
        (np.eye(2, dtype=np.float16), TypeError, "float32, float64, got float16"),
        ([[1.0]], TypeError, "a NumPy array or a torch tensor, got list"),
    ],
)
def test_refusals(name, a, error, text):
    with pytest.raises(error, match=f"{name}: a: expected .*{text}"):
        getattr(ops, name)(a)


@pytest.mark.parametrize("d", [1, 3, 7])
def test_gradients(d):
    x = torch.randn(2, d, d + 2, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(d, dtype=torch.float64)
    for f in (lambda x: ops.logdet(x @ x.mT + eye)[0], lambda x: ops.cholesky(x @ x.mT + eye)[0]):
        assert torch.autograd.gradcheck(f, x)
        assert torch.autograd.gradgradcheck(f, x)


def test_gradients_are_those_of_torch(spd):
    a = spd(6, 20.0, (3,))
    weights = torch.randn(3, 6, 6, dtype=torch.float64)
    for ours, theirs in [
        (lambda a: ops.logdet(a).logdet.square().sum(), lambda a: torch.logdet(a).square().sum()),
        (
            lambda a: (weights * ops.cholesky(a).factor).sum(),
            lambda a: (weights * torch.linalg.cholesky(a)).sum(),
        ),
    ]:
        grads = []
        for f in (ours, theirs):
            leaf = a.clone().requires_grad_()
            f(leaf).backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(grads[0], grads[1])
        torch.testing.assert_close(grads[0], grads[0].mT)


def test_the_gradient_of_a_failed_matrix_is_nan_and_of_no_other(spd):
    a = spd(4, 10.0, (2,))
    a[1, 3, 3] = -1
    a.requires_grad_()
    ops.logdet(a).logdet[0].backward()
    torch.testing.assert_close(a.grad[0], torch.linalg.inv(a[0].detach()))
    assert a.grad[1].isnan().all()
