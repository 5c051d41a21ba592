"""The CUDA kernels behind ``precision_diagonal`` and ``precision_blocks`` on the emulation."""

from __future__ import annotations

import numpy as np
import pytest

from emulation import COMPILER
from infoslice import ops

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

# order and block: registers of a warp, then global memory, with blocks inside a tile of 64 and
# larger ones
CASES = [(1, 1), (7, 1), (8, 2), (9, 9), (15, 5), (16, 1), (31, 1), (32, 8)]
CASES += [(33, 1), (33, 11), (64, 1), (65, 1), (66, 3), (70, 70), (130, 65), (132, 33), (150, 50)]


def definite(batch: int, d: int, dtype: type) -> np.ndarray:
    """Symmetric positive definite, NaN above the diagonal."""
    rng = np.random.default_rng(d)
    x = rng.standard_normal((batch, d, 2 * d + 2))
    a = (x @ x.transpose(0, 2, 1) / (2 * d) + 0.1 * np.eye(d)).astype(dtype)
    return np.where(np.triu(np.ones((d, d), dtype=bool), 1), np.nan, a).astype(dtype)


def batch_of(d: int) -> int:
    """More matrices than the small grids of this build hold at once."""
    return next((2 * 128 // lanes + 2 for lanes in (8, 16, 32) if d <= lanes), 3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "block"), CASES)
def test_blocks(emu, d, block, dtype):
    batch = batch_of(d)
    a = definite(batch, d, dtype)
    value, info = emu.precision_blocks(a, block, 1)
    assert info.tolist() == [0] * batch
    assert value.dtype == dtype
    low = np.tril(np.nan_to_num(a)).astype(np.float64)
    full = low + np.tril(low, -1).transpose(0, 2, 1)
    inverse = np.linalg.inv(full)
    wanted = np.stack(
        [inverse[:, i : i + block, i : i + block] for i in range(0, d, block)], axis=1
    )
    # computed in double, whatever the type: one rounding
    wide = np.finfo(np.float64).eps * 8 * d * np.linalg.cond(full).max()
    bound = (wide + np.finfo(dtype).eps) * np.abs(wanted).max()
    assert np.abs(value - wanted).max() <= bound
    assert np.array_equal(value, value.swapaxes(-1, -2))
    again = emu.precision_blocks(a, block, 2)[0]
    assert np.array_equal(value, again)
    cpu = ops.precision_blocks(np.nan_to_num(a), block).blocks
    assert np.abs(value - cpu).max() <= bound


@pytest.mark.parametrize(("d", "block"), [(6, 1), (6, 3), (32, 1), (40, 1), (66, 3), (70, 70)])
def test_failures_stay_with_their_matrix(emu, d, block):
    good = definite(1, d, np.float32)
    expected = emu.precision_blocks(good, block, 0)[0]
    for k in sorted({1, d // 2, d}):
        for bad in (-1.0, np.nan, np.inf):
            a = np.repeat(good, 3, 0)
            a[1, k - 1, k - 1] = bad
            value, info = emu.precision_blocks(a, block, k)
            assert info.tolist() == [0, k, 0]
            assert np.isnan(value[1]).all()
            assert np.array_equal(value[[0, 2]], expected[[0, 0]])


@pytest.mark.parametrize(("d", "block"), [(5, 1), (6, 3), (40, 1), (66, 3)])
def test_a_result_beyond_the_range_is_refused(emu, d, block):
    a = np.eye(d, dtype=np.float32)[None].repeat(3, 0)
    a[1, d - 1, d - 1] = 1e-40
    value, info = emu.precision_blocks(a, block, 1)
    assert info.tolist() == [0, d + 1, 0]
    assert np.isnan(value[1]).all()
    assert np.array_equal(
        value[0].reshape(-1, block, block), np.eye(block)[None].repeat(d // block, 0)
    )
    cpu = ops.precision_blocks(a, block)
    assert cpu.info.tolist() == info.tolist()
    double, info = emu.precision_blocks(a.astype(np.float64), block, 1)
    assert info.tolist() == [0, 0, 0]
    assert np.isfinite(double).all()


def test_no_matrices_no_launch(emu):
    for shape in [(0, 5, 5), (0, 40, 40)]:
        value, info = emu.precision_blocks(np.empty(shape), 5, 1)
        assert value.size == info.size == 0
