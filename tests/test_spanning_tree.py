"""spanning_tree against SciPy's minimum spanning trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

from infoslice import ops, reference

SIZES = [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 65, 200]
DTYPES = [torch.float64, torch.float32]


def squared_distances(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(cdist(x.double().numpy(), x.double().numpy(), "sqeuclidean"))


def edge_set(edges: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(edge), max(edge)) for edge in edges.tolist()}


def judged(squared: torch.Tensor) -> tuple[set[tuple[int, int]], float]:
    """SciPy's edges and their total; it takes 0 for no edge, in a dense matrix 1e-9 too."""
    tree = minimum_spanning_tree(csr_matrix(squared.numpy())).tocoo()
    return {(min(e), max(e)) for e in zip(tree.row, tree.col, strict=True)}, float(tree.sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", [1, 2, 5, 19])
def test_edges_and_lengths_are_scipys(n, d, dtype):
    points = torch.randn(3, n, d, dtype=dtype)
    edges, lengths, info = ops.spanning_tree(points)
    assert edges.shape == (3, n - 1, 2)
    assert edges.dtype == torch.int64
    assert lengths.dtype == dtype
    assert info.tolist() == [0, 0, 0]
    for x, tree, squared in zip(points, edges, lengths, strict=True):
        expected, total = judged(squared_distances(x))
        if dtype == torch.float64:  # in float32 a few distances are the same once rounded
            assert edge_set(tree) == expected
        assert squared.double().sum().item() == pytest.approx(total, rel=1e-5)
        difference = x[tree[:, 0]] - x[tree[:, 1]]
        torch.testing.assert_close(squared, difference.square().sum(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_shared_base_is_the_distance_in_more_dimensions(dtype):
    points, more = torch.randn(2, 2, 90, 3, dtype=dtype), torch.randn(90, 40, dtype=dtype)
    base = squared_distances(more).to(dtype)
    edges, lengths, info = ops.spanning_tree(points, base)
    assert edges.shape == (2, 2, 89, 2)
    assert not info.any()
    whole = ops.spanning_tree(torch.cat([points, more.expand(2, 2, 90, 40)], -1))
    assert torch.equal(edges, whole.edges)
    torch.testing.assert_close(lengths, whole.squared_lengths)
    alone = ops.spanning_tree(points[0, 0, :, :0], base)  # no dimension of its own
    assert edge_set(alone.edges) == judged(squared_distances(more))[0]
    shifted = ops.spanning_tree(points, base - 100)  # lengths may be negative
    assert torch.equal(shifted.edges, edges)
    torch.testing.assert_close(shifted.squared_lengths, lengths - 100, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_index(dtype):
    points = torch.randint(0, 4, (5, 60, 2)).to(dtype)  # exact distances, many of them equal or 0
    base = torch.randint(0, 3, (60, 60)).to(dtype)
    base = base + base.T
    for shared in (None, base):
        actual, expected = (f(points, shared) for f in (ops.spanning_tree, reference.spanning_tree))
        for part, of_reference in zip(actual, expected, strict=True):
            assert torch.equal(part, of_reference.to(part.dtype))
    line = ops.spanning_tree(torch.zeros(5, 1, dtype=dtype)).edges
    assert line.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]


def test_it_is_a_tree_whatever_the_points():
    points = torch.cat([torch.zeros(40, 2), torch.randn(30, 2), torch.full((3, 2), 1e15)])
    edges = ops.spanning_tree(points).edges
    graph = np.zeros((73, 73))
    graph[edges[:, 0], edges[:, 1]] = 1
    assert connected_components(graph, directed=False)[0] == 1
    gained = torch.cat([torch.zeros(1, dtype=torch.int64), edges[:, 1]])
    assert torch.equal(gained.sort().values, torch.arange(73))
    place = gained.argsort()
    assert (place[edges[:, 0]] < place[edges[:, 1]]).all()  # the first is in the tree already


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_from_the_origin_nothing_cancels(dtype):
    points = torch.randint(-100, 100, (80, 3)).to(dtype)
    far = 2.0**20 if dtype == torch.float32 else 2.0**40
    near, moved = ops.spanning_tree(points), ops.spanning_tree(points + far)
    assert torch.equal(near.edges, moved.edges)
    assert torch.equal(near.squared_lengths, moved.squared_lengths)


def test_any_strides_numpy_and_the_arguments_stay():
    base = squared_distances(torch.randn(50, 4))
    wide = torch.randn(2, 100, 6, dtype=torch.float64)
    big = torch.zeros(100, 50, dtype=torch.float64)
    big[::2] = base
    for points in (wide[:, ::2, 1::2], wide.mT.contiguous().mT[:, :50], wide[:, 50:, :1]):
        before = points.clone()
        tree = ops.spanning_tree(points, big[::2])
        same = ops.spanning_tree(points.contiguous(), base)
        arrays = ops.spanning_tree(points.numpy(), base.numpy())
        for one, two, three in zip(tree, same, arrays, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, torch.from_numpy(np.asarray(three)))
        assert torch.equal(points, before)
    alone = ops.spanning_tree(wide.numpy())
    assert np.array_equal(alone.edges, ops.spanning_tree(wide).edges)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_told(bad, dtype):
    for place in (0, 20, 69):
        points = torch.randn(3, 70, 2, dtype=dtype)
        good = ops.spanning_tree(points)
        points[1, place, 1] = bad
        edges, lengths, info = ops.spanning_tree(points)
        assert info.tolist() == [0, 1, 0]
        assert edges[1].eq(-1).all()
        assert lengths[1].isnan().all()
        for i in (0, 2):
            assert torch.equal(edges[i], good.edges[i])
            assert torch.equal(lengths[i], good.squared_lengths[i])
        base = torch.zeros(70, 70, dtype=dtype)
        base[place, 30] = base[30, place] = bad  # one pair that the tree would not need
        assert ops.spanning_tree(points[0], base).info == 1
    huge = torch.tensor([[0.0], [torch.finfo(dtype).max]], dtype=dtype)
    assert ops.spanning_tree(huge).info == 1


def test_empty_batches_and_single_points():
    assert ops.spanning_tree(torch.empty(0, 5, 2)).edges.shape == (0, 4, 2)
    one = ops.spanning_tree(torch.empty(2, 1, 3))
    assert one.edges.shape == (2, 0, 2)
    assert one.info.tolist() == [0, 0]
    assert ops.spanning_tree(torch.zeros(3, 0)).edges.tolist() == [[0, 1], [0, 2]]


SIX = torch.randn(6, 2)


@pytest.mark.parametrize(
    ("points", "base", "error", "text"),
    [
        (torch.ones(4), None, ValueError, r"points: expected at least 2 .* got shape \[4\]"),
        (torch.empty(2, 0, 3), None, ValueError, r"points: .*got shape \[2, 0, 3\]"),
        (SIX.half(), None, TypeError, "points: expected .*float32, float64, got float16"),
        (None, None, TypeError, "points: expected a NumPy array or a torch tensor, got NoneType"),
        (SIX, torch.ones(6, 5), ValueError, r"base: expected .*\[6, 6\].* got shape \[6, 5\]"),
        (SIX, torch.ones(1, 6, 6), ValueError, r"base: .* got shape \[1, 6, 6\]"),
        (SIX, torch.ones(6, 6).double(), TypeError, "base: expected float32, got float64"),
    ],
)
def test_refusals(points, base, error, text):
    with pytest.raises(error, match=f"spanning_tree: {text}"):
        ops.spanning_tree(points, base)


def test_a_gradient_is_refused_and_not_cut():
    points = torch.randn(5, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"spanning_tree: points: .* requires grad"):
        ops.spanning_tree(points)
    with pytest.raises(RuntimeError, match=r"spanning_tree: base: .* requires grad"):
        ops.spanning_tree(points.detach(), torch.zeros(5, 5, requires_grad=True))
