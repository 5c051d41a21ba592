"""The elimination behind the CUDA linear algebra (csrc/cuda/dense.h) on the emulation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from emulation import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)


class Case(NamedTuple):
    count: int
    columns: int
    pivots: int
    others: int  # rows of D before the identity
    identity: bool


CASES = [
    Case(3, 1, 1, 0, False),
    Case(3, 5, 5, 0, True),
    Case(3, 40, 7, 100, True),
    Case(3, 64, 64, 0, True),
    Case(3, 65, 65, 2, True),
    Case(2, 130, 100, 70, False),
    Case(2, 200, 64, 5, True),
    Case(3, 129, 129, 0, True),
    Case(1, 260, 131, 3, False),
]


def problem(case: Case, dtype: type) -> tuple[np.ndarray, int]:
    """The matrices in an array that is larger on all sides and NaN there, and their rows."""
    rng = np.random.default_rng(case.columns)
    n = case.columns
    x = rng.standard_normal((case.count, n, 2 * n + 2))
    rows = n + case.others + case.pivots * case.identity
    m = np.full((case.count, rows + 1, n + 3), np.nan, dtype)
    lower = np.tril(np.ones((n, n), dtype=bool))
    m[:, :n, :n] = np.where(lower, x @ x.transpose(0, 2, 1) / n, np.nan)
    m[:, n:rows, :n] = 0
    m[:, n : n + case.others, :n] = rng.standard_normal((case.count, case.others, n))
    if case.identity:
        m[:, n + case.others : rows, : case.pivots] = np.eye(case.pivots)
    return m, rows


def eliminate(
    emu, m: np.ndarray, rows: int, case: Case, floors: np.ndarray | None = None, seed: int = 1
) -> np.ndarray:
    identity = case.columns + case.others if case.identity else rows
    none = np.empty((0, 0), m.dtype)
    given = none if floors is None else floors
    return emu.eliminate(m, rows, case.columns, case.pivots, identity, given, seed)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_elimination(emu, case, dtype):
    m, rows = problem(case, dtype)
    before = m.copy()
    info = eliminate(emu, m, rows, case)
    assert info.tolist() == [0] * case.count
    n, p = case.columns, case.pivots
    wide = before[:, :rows, :n].astype(np.float64)
    low = np.tril(np.nan_to_num(wide[:, :n]))
    wide[:, :n] = low + np.tril(low, -1).transpose(0, 2, 1)
    factor = np.linalg.cholesky(wide[:, :p, :p])
    below = np.linalg.solve(factor, wide[:, p:, :p].transpose(0, 2, 1)).transpose(0, 2, 1)
    wide[:, :p, :p], wide[:, p:, :p] = factor, below
    wide[:, p:, p:] -= below @ below[:, : n - p].transpose(0, 2, 1)
    used = np.zeros(m.shape, dtype=bool)
    used[:, :rows, :n] = np.tril(np.ones((rows, n), dtype=bool))
    expected = np.zeros(m.shape)
    expected[:, :rows, :n] = wide
    error = np.abs(np.where(used, m, 0) - np.where(used, expected, 0)).max()
    assert error <= 8 * n * np.finfo(dtype).eps * np.abs(wide).max()
    # what is above the diagonal and around the matrices stays
    assert np.array_equal(m[~used], before[~used], equal_nan=True)
    again = before.copy()
    eliminate(emu, again, rows, case, seed=7)
    assert np.array_equal(m, again, equal_nan=True)


@pytest.mark.parametrize("k", [1, 5, 64, 65, 70])
def test_floors_and_failures(emu, k):
    case = Case(4, 70, 70, 2, True)
    good, rows = problem(case, np.float64)
    good[:] = good[:1]
    pivots = good.copy()
    eliminate(emu, pivots, rows, case)
    pivots = np.diagonal(pivots[0, :70, :70]) ** 2
    # a pivot just above its floor is good, one at it or below is not
    floors = np.tile(pivots * (1 - 1e-9), (4, 1))
    assert eliminate(emu, good.copy(), rows, case, floors).tolist() == [0] * 4
    floors[1, k - 1] = pivots[k - 1] * (1 + 1e-9)
    if k > 1:
        floors[1, k:] = np.inf  # later ones do not matter
    m = good.copy()
    assert eliminate(emu, m, rows, case, floors).tolist() == [0, k, 0, 0]
    expected = good.copy()
    eliminate(emu, expected, rows, case)
    for other in (0, 2, 3):
        assert np.array_equal(m[other], expected[other], equal_nan=True)
    for bad in (np.nan, np.inf, -1.0, 0.0):
        m = good.copy()
        m[2, k - 1, :k] = 0
        m[2, k - 1, k - 1] = bad
        assert eliminate(emu, m, rows, case).tolist() == [0, 0, k, 0]
        assert np.array_equal(m[3], expected[3], equal_nan=True)


def test_nothing_to_do(emu):
    m = np.full((2, 3, 3), 2.0)
    eliminate(emu, m, 3, Case(2, 3, 0, 0, False))
    assert (m == 2).all()
