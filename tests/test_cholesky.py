"""cholesky, logdet, submatrix_logdet against float64 references, LAPACK and their own algebra."""

from __future__ import annotations

import itertools
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("d", "batch"), [(65, 50), (96, 16), (128, 33), (255, 17), (257, 16)])
def test_whole_groups_and_what_is_left(d, batch, dtype, spd):
    a = spd(d, 100.0, (batch,)).to(dtype)
    assert_factors(a, ops.cholesky(a).factor)
    assert_logdet(ops.logdet(a).logdet, a, 100.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 3, 8, 16, 33, 70])
def test_failures_touch_no_neighbour(d, dtype, spd):
    a = spd(d, 10.0, (40,)).to(dtype)
    good = ops.cholesky(a).factor, ops.logdet(a).logdet
    expected = torch.zeros(40, dtype=torch.int32)
    for matrix, k, bad in [(0, 1, 0.0), (5, d, -1.0), (6, d, torch.inf), (31, 1, torch.nan)]:
        a[matrix, k - 1, k - 1] = bad
        expected[matrix] = k
    a[39] = -torch.inf
    expected[39] = 1
    factor, info = ops.cholesky(a)
    value, info_of_logdet = ops.logdet(a)
    assert torch.equal(info, expected)
    assert torch.equal(info_of_logdet, expected)
    assert torch.equal(value.isnan(), expected > 0)
    ok = expected == 0
    assert torch.equal(factor[ok], good[0][ok])
    assert torch.equal(value[ok], good[1][ok])
    assert factor[~ok].tril().isnan().sum() == 5 * d * (d + 1) // 2
    assert torch.equal(factor.triu(1), torch.zeros_like(factor))


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pivots_of_every_exponent(dtype):
    limits = torch.finfo(dtype)
    extremes = [limits.max, limits.tiny, limits.tiny * limits.eps, 1.0]  # the third is subnormal
    extremes = torch.tensor(extremes, dtype=torch.float64)
    mixed = torch.cat([10 ** torch.linspace(-37, 38, 29, dtype=torch.float64), extremes])
    for diagonal in (mixed, mixed.flip(0), extremes[:1].repeat(64), extremes[2:3].repeat(64)):
        diagonal = diagonal.to(dtype)
        a = diagonal.diag_embed().repeat(3, 1, 1)
        value, info = ops.logdet(a)
        assert not info.any()
        expected = diagonal.double().log().sum().to(dtype).repeat(3)
        torch.testing.assert_close(value, expected, rtol=4 * limits.eps, atol=1e3 * limits.eps)


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


SHAPES_AT_LEVELS = [(3, 17), (6, 9), (8, 50), (16, 35), (33, 21), (64, 3), (100, 18), (129, 2)]


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_every_cpu_level(level, spd, tmp_path):
    batches = [spd(d, 100.0, (batch,)) for d, batch in SHAPES_AT_LEVELS]
    torch.save(batches, tmp_path / "in.pt")
    code = f"""
import torch
from infoslice import ops
batches = torch.load(r"{tmp_path / "in.pt"}")
sets = torch.load(r"{tmp_path / "sets.pt"}")
dtypes, functions = (torch.float32, torch.float64), (ops.cholesky, ops.logdet)
out = [tuple(f(a.to(t))[0] for t in dtypes for f in functions) for a in batches]
cov = batches[-1][0]
values = [ops.submatrix_logdet(cov.to(t), index)[0] for t in dtypes for index in sets]
torch.save((out, values), r"{tmp_path / "out.pt"}")
"""
    sets = [torch.rand(37, 129).argsort(-1)[:, :k] for k in (1, 7, 16, 33, 70)]
    torch.save(sets, tmp_path / "sets.pt")
    environment = {**os.environ, "INFOSLICE_CPU_LEVEL": level}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    out, values = torch.load(tmp_path / "out.pt")
    for a, results in zip(batches, out, strict=True):
        for dtype, (factor, value) in zip(
            (torch.float32, torch.float64), (results[:2], results[2:]), strict=True
        ):
            assert_factors(a.to(dtype), factor)
            assert_logdet(value, a.to(dtype), 100.0)
    cov = batches[-1][0]
    for value, (dtype, index) in zip(
        values, itertools.product((torch.float32, torch.float64), sets), strict=True
    ):
        assert_logdet(value, submatrices(cov.to(dtype), index), 100.0)


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


def submatrices(cov: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return cov[index.unsqueeze(-1), index.unsqueeze(-2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 64, 65, 100])
def test_submatrices(k, dtype, spd):
    cov = spd(100, 100.0).to(dtype)
    for sets in [(), (1,), (2, 3), (37,)]:
        index = torch.rand(*sets, 100).argsort(-1)[..., :k]
        value, info = ops.submatrix_logdet(cov, index)
        assert value.shape == info.shape == sets
        assert info.dtype == torch.int32
        assert not info.any()
        assert_logdet(value, submatrices(cov, index), 100.0)
        if dtype == torch.float64:
            judge = reference.submatrix_logdet(cov, index).logdet
            torch.testing.assert_close(value, judge, rtol=0, atol=1e-12)
        array = ops.submatrix_logdet(cov.numpy(), index.numpy())
        assert torch.equal(torch.from_numpy(np.asarray(array.logdet)), value)


@pytest.mark.parametrize("k", [5, 70])
def test_submatrices_read_the_lower_triangle_and_any_strides(k, spd):
    cov = spd(80, 10.0)
    index = torch.rand(3, 20, 80).argsort(-1)[..., :k]
    expected = ops.submatrix_logdet(cov, index.contiguous()).logdet
    spoilt = torch.where(torch.ones(80, 80).triu(1).bool(), torch.nan, cov)
    views = [
        (spoilt, index),
        (cov.flip(0, 1), 79 - index),
        (cov.repeat_interleave(2, 0)[::2], index.mT.contiguous().mT),
    ]
    for matrix, sets in views:
        torch.testing.assert_close(ops.submatrix_logdet(matrix, sets).logdet, expected)
        array = ops.submatrix_logdet(matrix.numpy(), sets.numpy()).logdet
        torch.testing.assert_close(torch.from_numpy(array), expected)
    every_other = ops.submatrix_logdet(cov, index[:, ::2]).logdet
    torch.testing.assert_close(every_other, expected[:, ::2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [4, 16, 40, 70])
def test_a_repeated_variable_is_singular(k, dtype, spd):
    cov = spd(90, 10.0).to(dtype)
    index = torch.rand(35, 90).argsort(-1)[:, :k]
    expected = torch.zeros(35, dtype=torch.int32)
    for matrix, first, second in [(0, 0, k - 1), (7, 1, 2), (34, 0, k // 2)]:
        index[matrix, second] = index[matrix, first]
        expected[matrix] = second + 1
    value, info = ops.submatrix_logdet(cov, index)
    assert torch.equal(info, expected)
    assert torch.equal(value.isnan(), expected > 0)


@pytest.mark.parametrize("k", [4, 70])
def test_the_first_bad_minor_of_a_set_is_named(k, spd):
    cov = spd(90, 10.0)
    cov[11, 11] = -1
    index = torch.rand(400, 90).argsort(-1)[:, :k]
    expected = (index == 11).int().argmax(-1).int() + (index == 11).any(-1).int()
    _, info = ops.submatrix_logdet(cov, index)
    assert expected.any()
    assert torch.equal(info, expected)
    assert torch.equal(info, reference.submatrix_logdet(cov, index).info)


def test_submatrices_do_not_depend_on_threads(spd):
    cov = spd(60, 100.0).float()
    index = torch.rand(3000, 60).argsort(-1)[:, :40]
    one = ops.submatrix_logdet(cov, index).logdet
    torch.set_num_threads(3)
    try:
        many = ops.submatrix_logdet(cov, index).logdet
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, many)
    assert ops.submatrix_logdet(cov, index[:0]).logdet.shape == (0,)


@pytest.mark.parametrize(
    ("cov", "index", "error", "text"),
    [
        (torch.eye(3)[:2], [[0]], ValueError, r"cov: expected square matrices"),
        (torch.eye(3)[None], [[0]], ValueError, r"cov: expected one square matrix .*\[1, 3, 3\]"),
        (torch.eye(3).int(), [[0]], TypeError, "cov: expected float32, float64"),
        (torch.eye(3), [[0, 1], [2, 3]], ValueError, r"index: .* in \[0, 3\), got 3 at \[1, 1\]"),
        (torch.eye(3), [-1, 0], ValueError, r"index: .* in \[0, 3\), got -1 at \[0\]"),
        (torch.eye(3), [[], []], ValueError, r"index: .* k >= 1, got shape \[2, 0\]"),
        (torch.eye(3), 1, ValueError, r"index: expected at least 1 dimension"),
        (torch.eye(3), [1.0], TypeError, "index: expected int64, got float32"),
    ],
)
def test_refusals_of_submatrices(cov, index, error, text):
    index = torch.tensor(index)
    if index.numel() == 0:
        index = index.long()
    for convert in (lambda t: t, lambda t: t.numpy()):
        with pytest.raises(error, match=f"submatrix_logdet: {text}"):
            ops.submatrix_logdet(convert(cov), convert(index))
    with pytest.raises(TypeError, match="index"):
        ops.submatrix_logdet(torch.eye(3), [[0, 1]])
    with pytest.raises(RuntimeError, match="grad"):
        ops.submatrix_logdet(torch.eye(3).requires_grad_(), torch.tensor([[0]]))
