"""Channels that tell the next layer least, given all others, go first.

Ganesh, Corso and Sekeh 2020, "MINT: Deep Network Compression via Mutual Information-based Neuron
Trimming", ICPR 2020 pp. 8251-8258, arXiv 2003.08472; the estimator after Sekeh and Hero 2019,
"Geometric Estimation of Multivariate Dependency", arXiv 1905.08594 (Friedman and Rafsky 1979). Not
in nats: the dependence is a Henze-Penrose divergence, without unit, 0 where there is none, 1 where
the two distributions do not overlap.

The method scores pairs of channel groups (:func:`group_scores`) and zeroes the weights between the
lowest (:func:`block_masks`); :func:`mint` makes scores of whole channels of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics

__all__ = [
    "block_masks",
    "geometric_mi",
    "group_scores",
    "mint",
    "rows_of_classes",
    "weight_mask",
]


def mint(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    groups: int = 128,
    child_groups: int = 8,
    samples: int = 2500,
    seed: int = 0,
) -> Tensor:
    """The strongest connection of a channel to the layers that read it, float64 ``[C]``.

    Of a layer, X_p are the channels of the group in contiguous blocks, averaged over positions
    (pixels, tokens), Y_c its outputs in blocks, and Z_p the channels of X outside X_p, those that
    are not in the group included::

        score of a channel of block p = max over c and over layers of I(Y_c; X_p given Z_p)

    as :func:`group_scores` estimates it: the threshold at which the masks of the method would cut
    the last connection of the channel. Channels of one block have the same score. Without unit, in
    [0, 1]. The variance of the estimate is of the order of 1 / samples; as samples of real data are
    few, blocks that differ by less are in no order. O(P c N^2) for P blocks of X and c of Y.

    Args:
        statistics: of the group, with samples.
        weights: not used.
        groups: blocks of X, C at most; published: 8 to 128.
        child_groups: blocks of Y, as many as it has outputs at most.
        samples: rows that are used at most, drawn without replacement.
        seed: of these and of the estimator's split.

    Raises:
        ValueError: an argument below 1, or fewer than 6 samples.
        NotMeasuredError: samples cannot be had.
    """
    for name, value in (("groups", groups), ("child_groups", child_groups), ("samples", samples)):
        if value < 1:
            raise ValueError(f"mint: argument {name}: expected at least 1, got {value}")
    found = []
    for layer in statistics.consumers:
        x, y = (t.double() for t in layer.samples)
        taps = layer.weight.shape[1] // x.shape[1]  # variables of X that one channel read has
        columns = layer.variables // taps
        rows = _generated(len(x), seed)[:samples].sort().values
        blocks = [_distinct(columns[block]) for block in _blocks(len(columns), groups)]
        scores = _scores(x[rows], y[rows], blocks, _blocks(y.shape[1], child_groups), seed)
        found.append(scores.amax(0))
    strongest = torch.stack(found).amax(0)
    sizes = [len(block) for block in _blocks(statistics.channels, groups)]
    return strongest.repeat_interleave(torch.tensor(sizes, device=strongest.device))


def geometric_mi(
    x: Tensor, y: Tensor, z: Tensor, *, seed: int = 0, released: bool = False
) -> float:
    """I(X; Y given Z), a Henze-Penrose divergence in [0, 1]; not in nats.

    A random third of the rows is a sample of p(x, y, z). The second third keeps x and z and takes y
    of its nearest neighbour in z among the last third: a sample of p(x, z) p(y given z). R edges of
    the minimal spanning tree of both, m + k points, join one with the other; where the
    distributions are the same, 2 m k / (m + k) are expected::

        I = 1 - min(R, 2mk / (m + k)) / (2mk / (m + k))         m = k = n / 3:  1 - R / m

    The bound at 0 is the method's. So is a bias: rows that are near in z take y of the same donor,
    and such points lie together. Of independent variables, one each, it leaves 0.06 at any n (0.3
    if x is constant), with 100 in z 0.01. Where many rows coincide exactly (dead units)
    distances tie and the tree, and so the estimate, depends on the order. Moving, rotating and
    scaling all variables together changes nothing. O(n^2 d).

    Args:
        x: ``[n, dx]``, n >= 6, any real dtype, computed in float64.
        y: ``[n, dy]``, row by row with x.
        z: ``[n, dz]``, dz >= 0.
        seed: of the split into thirds; not used with ``released``.
        released: as the authors' code has it, three departures from the text included. Rows are
            split in the order given. The neighbour of a row is looked up in the wrong third (the
            index of a row's neighbour in the second third is used in the last one), so that the y
            taken hardly depends on z. And the i-th edge of the tree in the order of its sparse
            matrix is counted as if it began at point i; edges point from the lower to the higher
            index here, there in an order that SciPy leaves open.

    Raises:
        ValueError: fewer than 6 rows, other shapes, or NaN or infinite values.
    """
    for name, t in (("x", x), ("y", y), ("z", z)):
        _check("geometric_mi", name, t, len(x))
    n = len(x)
    split = _split(n, seed, released, x.device)
    x, y, z = x.double(), y.double(), z.double()
    between = _squared_distances(z[split.kept], z[split.donors])
    from_rows = split.y_rows(between, released)
    own = split.own
    base = _squared_distances(z[own], z[own]) + _squared_distances(y[from_rows], y[from_rows])
    return float(_dependence(x[own][None], base, split, n, released))


def group_scores(
    parent: Tensor,
    child: Tensor,
    parent_groups: int,
    child_groups: int,
    *,
    seed: int = 0,
    released: bool = False,
) -> Tensor:
    """I(child group; parent group given all other parent groups), float64 ``[Gc, Gp]``.

    Estimated as :func:`geometric_mi` has it, with one split of the rows for all pairs. Groups are
    contiguous blocks of columns, of sizes that differ by one at most. What a parent group has in
    common for all child groups, the squared distances in y and z and the neighbours, is computed
    once: O(n^2) for every pair, whatever the number of parent channels. In [0, 1], without unit.

    Args:
        parent: ``[N, C]``, N >= 6, activations of the layer above, averaged over positions.
        child: ``[N, K]``, of the layer that reads it, for the same inputs row by row.
        parent_groups: Gp, 1 to C.
        child_groups: Gc, 1 to K.
        seed: of the split.
        released: the departures of :func:`geometric_mi`, and a fourth: parent and child rows are
            shuffled apart, so that no row of one belongs to its row of the other. For comparison
            only: the scores say next to nothing.

    Raises:
        ValueError: fewer than 6 rows, other shapes or numbers of groups, or NaN or infinite values.
    """
    _check("group_scores", "parent", parent, len(parent))
    _check("group_scores", "child", child, len(parent))
    for name, groups, t in (
        ("parent_groups", parent_groups, parent),
        ("child_groups", child_groups, child),
    ):
        if not 1 <= groups <= t.shape[1]:
            raise ValueError(
                f"group_scores: argument {name}: expected 1 to {t.shape[1]}, the channels, got "
                f"{groups}"
            )
    if released:
        parent = parent[_generated(len(parent), seed)]
        child = child[_generated(len(child), seed + 1)]
    return _scores(
        parent.double(),
        child.double(),
        _blocks(parent.shape[1], parent_groups),
        _blocks(child.shape[1], child_groups),
        seed,
        released,
    )


def rows_of_classes(labels: Tensor, samples_per_class: int = 250, *, seed: int = 0) -> Tensor:
    """As many random rows of every class, int64, in random order; all of a class that has fewer.

    Without replacement: the method draws with it, but the same row on both sides of the estimator
    is a dependence that is not there. Raises ValueError for labels of another shape than ``[N]`` or
    ``samples_per_class`` < 1.
    """
    if labels.dim() != 1 or not len(labels) or samples_per_class < 1:
        raise ValueError(
            f"rows_of_classes: labels, samples_per_class: expected [N], N >= 1, and at least 1, "
            f"got {list(labels.shape)} and {samples_per_class}"
        )
    order = _generated(len(labels), seed)
    classes = sorted(set(labels.tolist()))
    drawn = [order[labels[order] == value][:samples_per_class] for value in classes]
    rows = torch.cat(drawn)
    return rows[_generated(len(rows), seed + 1)]


def block_masks(
    scores: Sequence[Tensor], prune_percent: float, upper_prune_limit: float = 0.75
) -> list[Tensor]:
    """Which pairs of groups stay connected, bool ``[Gc, Gp]`` for each layer.

    As published: the distinct scores of all layers are sorted, and what is at or below the one at
    position ``prune_percent`` of them is cut; a layer that would lose the fraction
    ``upper_prune_limit`` of its pairs, or more, takes the distinct score at that position of its
    own instead. Positions are rounded to the nearest, and to the last one at most. As the score at
    the position is cut too, a little more goes than is asked for, and with equal scores more.

    Args:
        scores: ``[Gc, Gp]`` of each layer, see :func:`group_scores`.
        prune_percent: in [0, 1), a fraction in spite of its name.
        upper_prune_limit: in (0, 1).

    Raises:
        ValueError: no layers, an argument out of range, or NaN.
    """
    if not scores or not 0 <= prune_percent < 1 or not 0 < upper_prune_limit < 1:
        raise ValueError(
            f"block_masks: arguments: expected scores of a layer or more, prune_percent in [0, 1) "
            f"and upper_prune_limit in (0, 1), got {len(scores)} layers, {prune_percent} and "
            f"{upper_prune_limit}"
        )
    if any(bool(layer.isnan().any()) for layer in scores):
        raise ValueError("block_masks: argument scores: expected numbers, got NaN")
    cutoff = _cutoff(torch.cat([layer.flatten() for layer in scores]), prune_percent)
    masks = []
    for layer in scores:
        removed = layer <= cutoff
        if float(removed.double().mean()) >= upper_prune_limit:
            removed = layer <= _cutoff(layer, upper_prune_limit)
        masks.append(~removed)
    return masks


def weight_mask(blocks: Tensor, outputs: int, channels: int) -> Tensor:
    """The mask of a weight, bool ``[outputs, channels]``, of the blocks ``[Gc, Gp]`` of its groups.

    Raises ValueError if there are fewer outputs or channels than groups.
    """
    if outputs < blocks.shape[0] or channels < blocks.shape[1]:
        raise ValueError(
            f"weight_mask: argument blocks: expected at most [{outputs}, {channels}], got "
            f"{list(blocks.shape)}"
        )
    mask = torch.zeros(outputs, channels, dtype=torch.bool)
    for rows, row in zip(_blocks(outputs, blocks.shape[0]), blocks, strict=True):
        for columns, keep in zip(_blocks(channels, blocks.shape[1]), row, strict=True):
            mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = keep
    return mask


# -- estimator -------------------------------------------------------------------------------------


class _Split(NamedTuple):
    """Rows of p(x, y, z); those that keep x and z; those that give y."""

    joint: Tensor
    kept: Tensor
    donors: Tensor

    @property
    def own(self) -> Tensor:
        """The row of x and z of every point, the joint ones first."""
        return torch.cat([self.joint, self.kept])

    def y_rows(self, squared: Tensor, released: bool) -> Tensor:
        """The row of y of every point; ``squared`` distances in z of kept from donor rows."""
        if released:  # the nearest kept row of a donor, its number taken for one of a donor
            nearest = squared.argmin(0)[: len(self.kept)]
        else:  # row i looks from donor i on: where all are as near, as many donors give y as can
            start = torch.arange(len(self.kept), device=squared.device)
            turned = (start[:, None] + start) % len(start)
            nearest = (squared.gather(1, turned).argmin(1) + start) % len(start)
        return torch.cat([self.joint, self.donors[nearest]])


def _split(n: int, seed: int, released: bool, device: torch.device) -> _Split:
    rows = (torch.arange(n) if released else _generated(n, seed)).to(device)
    train = 2 * n // 3 if released else n // 3 * 2
    return _Split(rows[train:], rows[: train // 2], rows[train // 2 : train])


def _scores(
    parent: Tensor,
    child: Tensor,
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    seed: int,
    released: bool = False,
) -> Tensor:
    """``[Gc, Gp]``; the groups are lists of columns, and what is in none of ``parents`` is in z."""
    n = len(parent)
    if n < 6:
        raise ValueError(f"mint: argument statistics: expected at least 6 samples, got {n}")
    split = _split(n, seed, released, parent.device)
    own = split.own
    # Columns of zeros make the child groups as wide as each other, and change no distance.
    points = parent.new_zeros(len(children), len(own), max(len(block) for block in children))
    for to, block in zip(points, children, strict=True):
        to[:, : len(block)] = child[own][:, block]
    whole = _squared_distances(parent[own], parent[own])
    between = _squared_distances(parent[split.kept], parent[split.donors])
    found = []
    for block in parents:
        y = parent[:, block]
        rows = split.y_rows(between - _squared_distances(y[split.kept], y[split.donors]), released)
        base = whole - _squared_distances(y[own], y[own]) + _squared_distances(y[rows], y[rows])
        found.append(_dependence(points, base, split, n, released))
    return torch.stack(found, 1)


def _dependence(points: Tensor, base: Tensor, split: _Split, n: int, released: bool) -> Tensor:
    """Of every child, ``[children]``, whose points have the squared distances ``base`` besides."""
    edges, _, info = ops.spanning_tree(points, base)
    if bool(info.any()):
        raise ValueError(
            "mint: argument samples: expected values whose squared distances are finite numbers, "
            "got larger ones; scale them"
        )
    m, k = len(split.joint), len(split.kept)
    if released:
        return 1 - _released_count(edges, m).clamp(max=m) / (n / 3)
    crossing = ((edges < m).sum(-1) == 1).sum(-1)
    expected = 2 * m * k / (m + k)
    return 1 - crossing.double().clamp(max=expected) / expected


def _released_count(edges: Tensor, m: int) -> Tensor:
    """Stored edges i, row by row of the sparse tree, whose end is not on the side of point i."""
    low, high = edges.amin(-1), edges.amax(-1)
    order = (low * (edges.shape[-2] + 1) + high).argsort(-1)
    ends = high.gather(-1, order)
    starts = torch.arange(edges.shape[-2], device=edges.device)
    return ((ends < m) != (starts < m)).sum(-1).double()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``[len(a), len(b)]``, of differences and not of products, which cancel."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()


# -- groups, rows, thresholds ----------------------------------------------------------------------


def _blocks(channels: int, groups: int) -> tuple[Tensor, ...]:
    """Contiguous blocks whose sizes differ by one at most; as many as channels at most."""
    return torch.arange(channels).tensor_split(min(groups, channels))


def _distinct(columns: Tensor) -> Tensor:
    return torch.tensor(sorted(set(columns.flatten().tolist())))


def _generated(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")


def _cutoff(scores: Tensor, fraction: float) -> float:
    values: list[float] = sorted(set(scores.flatten().tolist()))
    return values[min(round(fraction * len(values)), len(values) - 1)]


def _check(function: str, name: str, t: Tensor, rows: int) -> None:
    if t.dim() != 2 or len(t) != rows or rows < 6:
        raise ValueError(
            f"{function}: argument {name}: expected a matrix of at least 6 rows, as many as the "
            f"others, got shape {list(t.shape)}"
        )
    if not bool(t.isfinite().all()):
        raise ValueError(f"{function}: argument {name}: expected finite values, got NaN or inf")
