"""The CUDA kernel behind ``spanning_tree`` on the emulation."""

from __future__ import annotations

import numpy as np
import pytest

from emulation import COMPILER
from infoslice import ops

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

rng = np.random.default_rng(20260713)
# trees (more than a grid holds here), points (also more than threads of a block), dimensions
CASES = [(1, 1, 2), (3, 2, 1), (5, 31, 3), (3, 33, 0), (2, 100, 4), (1, 257, 2), (1, 300, 1)]


def same(actual, expected) -> None:
    for part, other in zip(actual, expected, strict=True):
        assert part.dtype == other.dtype
        assert np.array_equal(part, other, equal_nan=part.dtype.kind == "f")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("batch", "n", "d"), CASES)
def test_trees_are_those_of_the_cpu(emu, batch, n, d, dtype):
    # small integers: distances are exact and many are equal, so that ties must go the same way
    points = rng.integers(0, 12, (batch, n, d)).astype(dtype)
    base = rng.integers(0, 5, (n, n)).astype(dtype)
    for shared in (base + base.T, np.empty((0, 0), dtype)):
        actual = emu.spanning_tree(points, shared, 1)
        same(actual, ops.spanning_tree(points, shared if shared.size else None))
        same(actual, emu.spanning_tree(points, shared, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_failures_stay_with_their_tree(emu, bad):
    points = rng.standard_normal((3, 40, 2))
    points[1, 25, 0] = bad
    base = np.zeros((40, 40))
    edges, lengths, info = emu.spanning_tree(points, base, 1)
    assert info.tolist() == [0, 1, 0]
    assert (edges[1] == -1).all()
    assert np.isnan(lengths[1]).all()
    expected = ops.spanning_tree(points)
    assert np.array_equal(edges, expected.edges)
    base[3, 4] = base[4, 3] = bad
    assert emu.spanning_tree(points, base, 1)[2].tolist() == [1, 1, 1]


def test_no_trees_no_launch(emu):
    edges, lengths, info = emu.spanning_tree(np.empty((0, 5, 2)), np.empty((0, 0)), 1)
    assert edges.size == lengths.size == info.size == 0
