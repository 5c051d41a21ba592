"""MINT: the geometric estimator, scores of groups, masks, and the criterion of whole channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import nn

from infoslice import prune
from infoslice.criteria.mint import (
    block_masks,
    geometric_mi,
    group_scores,
    mint,
    rows_of_classes,
    weight_mask,
)
from infoslice.statistics import Samples


def columns(n: int, d: int = 1) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64)


# -- the estimator against the definition ----------------------------------------------------------


def by_definition(x: np.ndarray, y: np.ndarray, z: np.ndarray, seed: int) -> float:
    """Neighbours by scikit-learn, the tree by SciPy, edges by rows and columns."""
    n = len(x)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    kept, donors, joint = rows[: n // 3], rows[n // 3 : 2 * (n // 3)], rows[2 * (n // 3) :]
    nearest = NearestNeighbors(n_neighbors=1).fit(z[donors]).kneighbors(z[kept])[1][:, 0]
    first = np.hstack([x, y, z])[joint]
    second = np.hstack([x[kept], y[donors[nearest]], z[kept]])
    pooled = np.vstack([first, second])
    tree = minimum_spanning_tree(csr_matrix(cdist(pooled, pooled))).tocoo()
    m, k = len(first), len(second)
    crossing = ((tree.row < m) != (tree.col < m)).sum()
    return max(0.0, 1 - crossing * (m + k) / (2 * m * k))


@pytest.mark.parametrize("n", [6, 7, 20, 200, 301])
def test_estimate_is_that_of_the_definition(n):
    for seed in range(3):
        z = columns(n, 3)
        x, y = columns(n, 2) + z[:, :2], columns(n) + z[:, 2:]
        y += 0.5 * x[:, :1]
        expected = by_definition(x.numpy(), y.numpy(), z.numpy(), seed)
        assert geometric_mi(x, y, z, seed=seed) == pytest.approx(expected, abs=1e-12)


def test_pairs_of_groups_are_single_estimates():
    parent = columns(150, 7)
    child = torch.tanh(parent @ torch.randn(7, 5, dtype=torch.float64)) + 0.1 * columns(150, 5)
    for parent_groups, child_groups in [(3, 2), (7, 5), (2, 1), (1, 1)]:
        scores = group_scores(parent, child, parent_groups, child_groups, seed=4)
        assert scores.shape == (child_groups, parent_groups)
        assert scores.dtype == torch.float64
        for c, own in enumerate(child.tensor_split(child_groups, 1)):
            blocks = list(parent.tensor_split(parent_groups, 1))
            for p, block in enumerate(blocks):
                rest = torch.cat([*blocks[:p], parent[:, :0], *blocks[p + 1 :]], 1)
                assert scores[c, p].item() == geometric_mi(own, block, rest, seed=4)


# -- what it measures ------------------------------------------------------------------------------


def mean_of(make, n=900, repeats=6):
    values = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        values.append(geometric_mi(*make(n), seed=seed))
    return sum(values) / repeats


def test_independence_dependence_and_conditional_independence():
    independent = mean_of(lambda n: (columns(n), columns(n), columns(n, 2)))
    assert independent < 0.1
    assert mean_of(lambda n: (columns(n, 2), columns(n, 2), columns(n, 50))) < 0.06

    def dependent(n):
        x = columns(n)
        return x, x + 0.05 * columns(n), columns(n, 2)

    def less(n):
        x = columns(n)
        return x, x + 0.5 * columns(n), columns(n, 2)

    assert mean_of(dependent) > 0.5
    assert independent + 0.1 < mean_of(less) < mean_of(dependent) - 0.1

    def common_cause(n):  # x and y depend, but z explains it all
        z = columns(n)
        return z + 0.5 * columns(n), z + 0.5 * columns(n), z

    assert mean_of(common_cause) < 0.1
    assert mean_of(lambda n: (*common_cause(n)[:2], columns(n))) > 0.15  # another z does not

    def exclusive_or(n):  # independent, but not given z
        x, y = columns(n), columns(n)
        return x, y, x + y + 0.05 * columns(n)

    assert mean_of(exclusive_or) > 0.25


def test_moving_rotating_and_scaling_change_nothing():
    x, y, z = columns(240, 2), columns(240), columns(240, 3)
    y += x[:, :1] + z[:, :1]
    value = geometric_mi(x, y, z)
    assert 0 < value < 1
    assert geometric_mi(x + 1e3, y - 40, z + 7) == value
    assert geometric_mi(1e-6 * x, 1e-6 * y, 1e-6 * z) == value
    for t in (x, y, z):
        rotation = torch.linalg.qr(columns(t.shape[1], t.shape[1])).Q
        t.copy_(t @ rotation)
    assert geometric_mi(x, y, z) == value
    assert geometric_mi(1e3 * x, y, z) != value  # but the scale of one alone counts


def test_constants_and_no_condition():
    n = 600
    zero = torch.zeros(n, 1)
    assert geometric_mi(zero, zero, zero) == 0
    assert geometric_mi(columns(n), columns(n), columns(n, 0)) < 0.15
    x = columns(n)
    assert geometric_mi(x, x + 0.05 * columns(n), x[:, :0]) > 0.5
    assert geometric_mi(x, x + 0.05 * columns(n), zero) > 0.5  # as many donors as there are


# -- the released code -----------------------------------------------------------------------------


def as_described(x, y, z):
    """Its steps on their own: rows in order, wrong neighbours, edges counted by their number."""
    n = len(x)
    first = 2 * n // 3
    half = first // 2
    nearest = NearestNeighbors(n_neighbors=1).fit(z[:half]).kneighbors(z[half:first])[1][:, 0]
    surrogate = [np.concatenate([x[i], y[half + nearest[i]], z[i]]) for i in range(half)]
    pooled = np.array([*np.hstack([x, y, z])[first:], *surrogate])
    tree = minimum_spanning_tree(csr_matrix(cdist(pooled, pooled))).tocoo()
    upright = csr_matrix(
        (tree.data, (np.minimum(tree.row, tree.col), np.maximum(tree.row, tree.col))),
        shape=tree.shape,
    )
    upright.sort_indices()
    joint = n - first
    crossing = 0
    for i in range(len(pooled) - 1):
        crossing += (upright.indices[i] >= joint) != (i >= joint)
    return 1 - min(crossing, joint) / (n / 3)


@pytest.mark.parametrize("n", [6, 11, 30, 100, 202])
def test_released_counts_as_it_was_described(n):
    z = columns(n, 2)
    x, y = columns(n, 2) + z, columns(n) + z[:, :1]
    expected = as_described(x.numpy(), y.numpy(), z.numpy())
    assert geometric_mi(x, y, z, released=True) == pytest.approx(expected, abs=1e-12)


def test_released_has_a_floor_and_little_range():
    def mean(make):
        return np.mean([geometric_mi(*make(900), released=True) for _ in range(6)])

    def dependent(n):
        x = columns(n)
        return x, x + 0.05 * columns(n), columns(n, 2)

    floor = mean(lambda n: (columns(n), columns(n), columns(n, 2)))
    assert floor > 0.2
    assert mean(dependent) - floor < 0.5

    def common_cause(n):  # it hardly conditions: the wrong neighbour's y is any y
        z = columns(n)
        return z + 0.5 * columns(n), z + 0.5 * columns(n), z

    assert mean(common_cause) > floor + 0.05


def test_released_scores_are_of_rows_that_do_not_belong_together():
    parent = columns(600, 4)
    child = parent[:, :1] + 0.01 * columns(600)
    corrected = group_scores(parent, child, 4, 1)
    assert corrected[0, 0] > corrected[0, 1:].max() + 0.2
    orders = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    order, other = (torch.randperm(600, generator=generator) for generator in orders)
    x, y = child[other].numpy(), parent[order].numpy()
    expected = [as_described(x, y[:, [p]], np.delete(y, p, 1)) for p in range(4)]
    released = group_scores(parent, child, 4, 1, seed=3, released=True)
    assert released[0].tolist() == pytest.approx(expected, abs=1e-12)


# -- rows and masks --------------------------------------------------------------------------------


def test_rows_of_classes():
    labels = torch.tensor([0] * 50 + [7] * 30 + [3] * 4)[torch.randperm(84)]
    rows = rows_of_classes(labels, 10, seed=2)
    assert labels[rows].bincount()[[0, 7, 3]].tolist() == [10, 10, 4]
    assert len(rows.unique()) == 24
    assert not torch.equal(labels[rows].sort().values, labels[rows])
    assert torch.equal(rows, rows_of_classes(labels, 10, seed=2))
    assert not torch.equal(rows, rows_of_classes(labels, 10, seed=3))
    with pytest.raises(ValueError, match="rows_of_classes"):
        rows_of_classes(labels, 0)


def test_masks_share_a_threshold_and_layers_have_a_limit():
    low, high = torch.arange(8.0).view(2, 4) / 100, torch.arange(12.0).view(3, 4) + 1
    masks = block_masks([low, high], 0.3, 0.75)
    # 20 distinct scores: the one at position 6 is 0.06, and 7 of the 8 of the first layer are 88 %:
    # that one takes its own at position 6
    assert torch.equal(masks[0], low > 0.06)
    assert masks[1].all()
    masks = block_masks([low, high], 0.3, 0.5)
    assert torch.equal(masks[0], low > 0.04)
    masks = block_masks([low, high], 0.5, 0.9)
    assert torch.equal(masks[0], low > 0.07)  # 100 % of it: position 7 of 8 is the last one
    assert torch.equal(masks[1], high > 3)
    assert not block_masks([torch.zeros(2, 2)], 0.0)[0].any()  # equal scores fall together
    for arguments in [([], 0.5), ([low], 1.0), ([low], -0.1), ([low], 0.5, 1.0)]:
        with pytest.raises(ValueError, match="block_masks: arguments: expected"):
            block_masks(*arguments)
    with pytest.raises(ValueError, match=r"block_masks: argument scores: .* got NaN"):
        block_masks([torch.tensor([[torch.nan]])], 0.5)


def test_a_mask_of_blocks_is_one_of_weights():
    blocks = torch.tensor([[True, False], [False, True], [True, True]])
    mask = weight_mask(blocks, 6, 8)
    assert torch.equal(mask, blocks.repeat_interleave(2, 0).repeat_interleave(4, 1))
    assert weight_mask(blocks, 4, 3).tolist()[0] == [True, True, False]
    with pytest.raises(ValueError, match="weight_mask"):
        weight_mask(blocks, 2, 8)


# -- the criterion ---------------------------------------------------------------------------------


class Reader:
    """What mint looks at of a layer: linear, of channels with r variables each."""

    def __init__(self, x, y, variables, taps=1):
        self.samples = Samples(x.float(), y.float())
        self.variables = variables
        self.weight = torch.zeros(y.shape[1], x.shape[1] * taps)


class Statistics:
    def __init__(self, channels, *consumers):
        self.channels, self.consumers = channels, consumers


def test_a_channel_is_worth_its_strongest_connection():
    x = columns(600, 6)
    y = torch.stack([x[:, 1], x[:, 1] + 0.3 * x[:, 4]], 1) + 0.02 * columns(600, 2)
    variables = torch.arange(5)[:, None]  # column 5 is another group's
    layer = Reader(x, y, variables)
    scores = mint(Statistics(5, layer), child_groups=2)
    assert scores.dtype == torch.float64
    assert scores.shape == (5,)
    assert scores.argmax() == 1
    assert torch.equal(scores, group_scores(x.float(), y.float(), 6, 2)[:, :5].amax(0))
    other = Reader(x, x[:, [3]] + 0.02 * columns(600), variables)
    both = mint(Statistics(5, layer, other))
    assert torch.equal(both, torch.maximum(scores, mint(Statistics(5, other))))
    assert both.topk(2).indices.sort().values.tolist() == [1, 3]
    blocks = mint(Statistics(5, layer), groups=2)
    assert blocks[0] == blocks[1] == blocks[2]
    assert blocks[3] == blocks[4]
    # kernel taps do not matter: channels are averages over positions
    tapped = Reader(x, y, torch.arange(45).view(5, 9), taps=9)
    assert torch.equal(mint(Statistics(5, tapped), child_groups=2), scores)
    few = mint(Statistics(5, layer), samples=90)
    rows = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:90].sort().values
    assert torch.equal(few, mint(Statistics(5, Reader(x[rows], y[rows], variables))))


@pytest.mark.parametrize("spatial", [False, True])
def test_prune_by_mint(spatial):
    torch.manual_seed(1)
    if spatial:
        first, reader = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        model = nn.Sequential(first, nn.ReLU(), reader, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        example = torch.randn(2, 3, 9, 9)
    else:
        first, reader = nn.Linear(6, 8), nn.Linear(8, 4)
        model, example = nn.Sequential(first, nn.Tanh(), reader), torch.randn(2, 6)
    with torch.no_grad():
        reader.weight[:, [0, 3, 6]] = 0  # never read
    result = prune(model.eval(), example, pruning_ratio=0.375, criterion="mint", samples=512)
    kept = result.model[0].weight.shape[0]
    assert kept == 5
    assert result.model(example).shape == (2, 4)


def test_refusals():
    x = columns(30)
    for function in (geometric_mi, group_scores):
        rest = (1, 1) if function is group_scores else (x,)
        with pytest.raises(ValueError, match=r"expected a matrix of at least 6 rows.*\[5, 1\]"):
            function(x[:5], x[:5], *rest)
        with pytest.raises(ValueError, match=r"as many as the others, got shape \[29, 1\]"):
            function(x, x[:29], *rest)
        with pytest.raises(ValueError, match="expected finite values"):
            function(x, x / 0, *rest)
        with pytest.raises(ValueError, match="squared distances are finite"):
            function(x * 1e200, x * 1e200, *rest)
    with pytest.raises(ValueError, match="parent_groups: expected 1 to 1, the channels, got 2"):
        group_scores(x, x, 2, 1)
    with pytest.raises(ValueError, match="child_groups: expected 1 to 1, the channels, got 0"):
        group_scores(x, x, 1, 0)
    layer = Reader(x[:5], x[:5], torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 6 samples, got 5"):
        mint(Statistics(1, layer))
    for name in ("groups", "child_groups", "samples"):
        with pytest.raises(ValueError, match=f"mint: argument {name}: expected at least 1, got 0"):
            mint(Statistics(1, layer), **{name: 0})


def test_samples_of_a_layer_that_gets_its_own_noise_are_none():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    example = torch.randn(2, 4)
    result = prune(model, example, pruning_ratio=0.5, criterion="mint", injection="layer")
    assert "injection='input'" in result.report.left_whole["0"]
