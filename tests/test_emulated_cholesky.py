"""The CUDA kernels behind ``cholesky``, ``logdet`` and ``submatrix_logdet`` on the emulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emulation import COMPILER
from infoslice import ops

H100_SHARED = 232448  # bytes of shared memory a block may have

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

# order, shared memory of a block: registers of a warp, a block per matrix (one panel of columns and
# several), many blocks per matrix
PATHS = [(d, H100_SHARED) for d in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129)]
PATHS += [(d, 2048) for d in (33, 64, 65, 96, 129)]


def batch_of(d: int) -> int:
    """More matrices than the small grids of this build hold at once."""
    return next((2 * 128 // lanes + 2 for lanes in (8, 16, 32) if d <= lanes), 3)


def definite(batch: int, d: int, dtype: type) -> np.ndarray:
    """Symmetric positive definite, NaN above the diagonal."""
    rng = np.random.default_rng(d)
    x = rng.standard_normal((batch, d, 2 * d + 2))
    a = (x @ x.transpose(0, 2, 1) / (2 * d) + 0.1 * np.eye(d)).astype(dtype)
    return np.where(np.triu(np.ones((d, d), dtype=bool), 1), np.nan, a).astype(dtype)


def symmetric(a: np.ndarray) -> np.ndarray:
    low = np.tril(np.nan_to_num(a)).astype(np.float64)
    return low + np.tril(low, -1).swapaxes(-1, -2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "shared"), PATHS)
def test_factors_and_determinants(emu, d, shared, dtype):
    batch = batch_of(d)
    a = definite(batch, d, dtype)
    full = symmetric(a)
    condition = np.linalg.cond(full).max()
    eps = np.finfo(dtype).eps
    factor, info = emu.cholesky(a, d, shared)
    assert info.tolist() == [0] * batch
    assert factor.dtype == dtype
    assert (np.triu(factor, 1) == 0).all()
    wide = factor.astype(np.float64)
    error = np.abs(wide @ wide.transpose(0, 2, 1) - full).max()
    assert error <= 4 * d * eps * np.abs(full).max()
    assert np.abs(wide - np.linalg.cholesky(full)).max() <= 4 * d * eps * condition
    value, info, workspace = emu.logdet(a, d + 1, shared)
    assert info.tolist() == [0] * batch
    expected = np.linalg.slogdet(full)[1]
    bound = 4 * d * eps * condition + eps * np.abs(expected).max()
    assert np.abs(value - expected).max() <= bound
    together = 2  # in the workspace
    assert workspace == (together * d * d * a.itemsize if d > 32 and shared == 2048 else 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_determinant_is_as_exact_as_on_the_cpu(emu, dtype):
    for d in (16, 32, 64, 128):
        a = definite(3, d, dtype)
        expected = np.linalg.slogdet(symmetric(a))[1]
        ours = np.abs(emu.logdet(a, 1, H100_SHARED)[0] - expected).max()
        cpu = np.abs(ops.logdet(a).logdet - expected).max()
        assert ours <= 4 * cpu + 4 * np.finfo(dtype).eps * np.abs(expected).max()


@pytest.mark.parametrize("d", [1, 9, 32])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_failures(emu, d, dtype):
    check_failures(emu, d, H100_SHARED, dtype, sorted({1, d // 2 + 1, d}))


@pytest.mark.parametrize("shared", [H100_SHARED, 2048])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_failures(emu, shared, dtype):
    check_failures(emu, 70, shared, dtype, [1, 32, 33, 64, 65, 70])


def check_failures(emu: Any, d: int, shared: int, dtype: type, minors: list[int]) -> None:
    good = definite(1, d, dtype)
    expected, _ = emu.cholesky(good, 0, shared)
    expected_value, _, _ = emu.logdet(good, 0, shared)
    for k in minors:
        for bad in (-1.0, np.nan, np.inf) if d < 70 else (np.nan,):
            a = np.repeat(good, 4 if d > 32 else 10, 0)
            a[1, k - 1, k - 1] = bad
            factor, info = emu.cholesky(a, k, shared)
            value, info_of_logdet, _ = emu.logdet(a, k, shared)
            assert info.tolist() == info_of_logdet.tolist() == [0, k, *[0] * (len(a) - 2)]
            lower = np.tril(np.ones((d, d), dtype=bool))
            assert np.isnan(factor[1][lower]).all()
            assert (factor[1][~lower] == 0).all()
            assert np.isnan(value[1])
            for other in (0, 2, -1):
                assert np.array_equal(factor[other], expected[0])
                assert value[other] == expected_value[0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "shared"), [(5, H100_SHARED), (40, H100_SHARED), (40, 2048)])
def test_scales_at_the_ends_of_the_range(emu, d, shared, dtype):
    info = np.finfo(dtype)
    for scale in (float(info.tiny) * 2, float(info.max) / 64):
        a = definite(2, d, np.float64)
        a = (a * scale).astype(dtype)
        value, failed, _ = emu.logdet(a, 0, shared)
        assert failed.tolist() == [0, 0]
        expected = ops.logdet(np.nan_to_num(a)).logdet
        np.testing.assert_allclose(value, expected, rtol=10 * d * info.eps)


@pytest.mark.parametrize(
    ("d", "shared"), [(5, H100_SHARED), (33, H100_SHARED), (70, H100_SHARED), (70, 2048)]
)
def test_results_do_not_depend_on_the_schedule(emu, d, shared):
    a = definite(3, d, np.float32)
    first = emu.cholesky(a, 0, shared)[0], emu.logdet(a, 0, shared)[0]
    for seed in range(1, 5):
        assert np.array_equal(emu.cholesky(a, seed, shared)[0], first[0])
        assert np.array_equal(emu.logdet(a, seed, shared)[0], first[1])


def test_no_matrices_no_launch(emu):
    for shape in [(0, 5, 5), (0, 40, 40), (3, 0, 0)]:
        factor, info = emu.cholesky(np.empty(shape), 0, H100_SHARED)
        assert factor.shape == shape
        assert info.shape == shape[:1]


def test_many_small_matrices(emu):
    scales = np.arange(1, 301, dtype=np.float32)
    a = definite(1, 2, np.float32).repeat(300, 0) * scales[:, None, None]
    value, _, _ = emu.logdet(a, 3, H100_SHARED)
    one = emu.logdet(a[:1], 3, H100_SHARED)[0]
    np.testing.assert_allclose(value, one + 2 * np.log(scales), rtol=1e-5)


# ---- submatrices ---------------------------------------------------------------------------------

SETS = [(1, H100_SHARED), (5, H100_SHARED), (16, H100_SHARED), (29, H100_SHARED)]
SETS += [(40, H100_SHARED), (70, H100_SHARED), (40, 2048), (70, 2048)]


def sets_of(n: int, count: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(k)
    return np.stack([rng.permutation(n)[:k] for _ in range(count)]).astype(np.int64)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("k", "shared"), SETS)
def test_submatrices(emu, k, shared, dtype):
    n = 80
    cov = definite(1, n, dtype)[0]
    index = sets_of(n, batch_of(k), k)
    value, info = emu.submatrix_logdet(cov, index, 1, shared)
    assert (info == 0).all()
    picked = symmetric(cov)[index[:, :, None], index[:, None, :]]
    expected = np.linalg.slogdet(picked)[1]
    bound = 4 * k * np.finfo(dtype).eps * np.linalg.cond(picked).max()
    assert np.abs(value - expected).max() <= bound + np.finfo(dtype).eps * np.abs(expected).max()
    # the very bits of the same matrices in a batch
    batch = symmetric(cov).astype(dtype)[index[:, :, None], index[:, None, :]]
    assert np.array_equal(value, emu.logdet(batch, 1, shared)[0])


@pytest.mark.parametrize(("k", "shared"), SETS[1:])
def test_sets_that_are_refused(emu, k, shared):
    n = 80
    cov = definite(1, n, np.float64)[0]
    index = sets_of(n, 7, k)
    index[1, k - 1] = index[1, 0]  # twice
    index[2, 3] = index[2, 1]
    index[2, 4] = index[2, 1]  # three times
    index[3, k // 2] = n
    index[4, 0] = -1
    index[4, 3] = index[4, 1]
    index[5, k - 1] = 2**40
    value, info = emu.submatrix_logdet(cov, index, 1, shared)
    assert info.tolist() == [0, k, 4, -1, -1, -1, 0]
    assert np.isnan(value[1:6]).all()
    cpu = ops.submatrix_logdet(np.nan_to_num(cov), index[:3])
    assert cpu.info.tolist() == info[:3].tolist()
    good = emu.submatrix_logdet(cov, index[[0, 6]], 1, shared)[0]
    assert np.array_equal(value[[0, 6]], good)


def test_a_minor_before_the_repeated_variable_comes_first(emu):
    cov = np.diag([1.0, 2.0, -1.0, 4.0])
    index = np.array([[0, 2, 1, 0], [0, 0, 2, 1]])
    for shared in (H100_SHARED, 2048):
        assert emu.submatrix_logdet(cov, index, 1, shared)[1].tolist() == [2, 2]


def test_no_sets(emu):
    value, info = emu.submatrix_logdet(np.eye(3), np.empty((0, 2), np.int64), 1, H100_SHARED)
    assert value.shape == info.shape == (0,)
