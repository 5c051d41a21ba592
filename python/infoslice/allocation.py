"""How much each group may lose, measured: what cutting it alone does to the network's output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from infoslice.graph import ChannelGraph, ChannelGroup
from infoslice.group_weights import silenced
from infoslice.perturbation import Inputs, evaluating
from infoslice.progress import track
from infoslice.selection import increasing

__all__ = ["Cut", "Divergence", "relative_error", "sensitivity"]

# (output of the network with one group cut, output of the whole network) -> a number >= 0
Divergence = Callable[[Any, Any], Tensor | float]
# (group, int64 channels to remove) -> the tensors of the network that change by it
Cut = Callable[[ChannelGroup, Tensor], Mapping[str, Tensor]]


def relative_error(output: Any, original: Any, weights: Tensor | None = None) -> float:
    """``|y - y0|^2 / |y0|^2`` of the first floating-point tensor of the output (the logits).

    ``weights``: of its samples or positions, from the front; of others, if they do not fit it, the
    largest of each sample.
    """
    y, y0 = (_first(found).detach().double() for found in (output, original))
    if weights is not None:
        w = weights.to(y)
        if w.shape != y.shape[: w.dim()]:
            w = w.flatten(1).amax(1)
        w = w.view(*w.shape, *[1] * (y.dim() - w.dim())).sqrt()
        y, y0 = w * y, w * y0
    return float((y - y0).square().sum() / y0.square().sum())


@torch.no_grad()
def sensitivity(
    graph: ChannelGraph,
    model: nn.Module,
    inputs: Inputs,
    scores: Mapping[str, Tensor],
    *,
    ratios: Sequence[float] = (0.125, 0.25, 0.5, 0.75),
    divergence: Divergence = relative_error,
    cut: Cut | None = None,
    batch_size: int = 64,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """Scores of all groups in one unit: how far the removal of a channel moves the output.

    Each group alone is cut at every ratio, in the order of its scores, and the output is compared
    with the original's. The largest convex curve below these points, through zero, gives what the
    next channel costs at any width: its slopes, interpolated between the middles of its segments
    and extended beyond the last by the same rise. The new score of a channel is that slope at its
    turn. With these :func:`infoslice.selection.select` takes the next channel where it costs least,
    until the ratio or budget is met: at the widths found, all groups are equally sensitive. Groups
    are taken to add up.

    Cost: a forward of all inputs for each group and ratio, and one more for each group. Memory: one
    batch, and for each ratio a copy of the weights that read one group.

    Args:
        graph: of the model.
        model: nothing of it changes; run in eval mode.
        inputs: what is put in.
        scores: group name -> float ``[C]``, high = keep, of any unit: the order alone counts.
        ratios: ascending, in (0, 1), rounded down to whole channels.
        divergence: of two outputs, a mean over the samples of a batch; :func:`relative_error`,
            which is given the weights of the inputs, or for a classifier a Kullback-Leibler
            divergence.
        cut: how a group is cut alone: (group, int64 channels to remove) -> the tensors of the
            network that differ then; by default what reads these channels becomes zero
            (:func:`infoslice.group_weights.silenced`). With one that compensates
            (:meth:`infoslice.compensation.compensator.Compensator.alone`) what a refit will mend
            does not count.
        batch_size: samples per forward.
        show_progress: a bar on standard error, if that is a terminal.

    Returns:
        Group name -> float64 ``[C]``, in the unit of the divergence per channel.

    Raises:
        ValueError: an argument out of range; a divergence that is negative, NaN or infinite.
    """
    if not ratios or list(ratios) != sorted(set(ratios)) or not 0 < ratios[0] <= ratios[-1] < 1:
        raise ValueError(
            f"sensitivity: argument ratios: expected ascending numbers in (0, 1), got {ratios}"
        )
    groups = [graph.group(name) for name in scores]
    order = {name: _lowest_first(values) for name, values in scores.items()}
    counts = {g.name: sorted({int(r * g.channels + 1e-9) for r in ratios} - {0}) for g in groups}
    found = {}
    with evaluating(model):
        for group in track(groups, "cutting groups alone", show=show_progress):
            gone = [order[group.name][:count] for count in counts[group.name]]
            cuts = [(cut or partial(silenced, model))(group, channels) for channels in gone]
            moved = np.zeros(len(cuts))
            for batch in inputs.batches(batch_size):
                original = model(*batch.args, **batch.kwargs)
                compare = divergence
                if divergence is relative_error:
                    compare = partial(relative_error, weights=batch.weights)
                for i, tensors in enumerate(cuts):
                    output = functional_call(model, dict(tensors), batch.args, dict(batch.kwargs))
                    moved[i] += float(compare(output, original)) * batch.samples()
            moved /= inputs.samples()
            if not (np.isfinite(moved).all() and (moved >= 0).all()):
                raise ValueError(
                    f"sensitivity: argument divergence: expected finite numbers >= 0, got {moved} "
                    f"for group '{group.name}' without {counts[group.name]} of its channels"
                )
            turns = _marginal(group.channels, counts[group.name], moved)
            found[group.name] = turns[order[group.name].argsort()]
    return found


def _lowest_first(scores: Tensor) -> Tensor:
    """Channels in the order in which :func:`infoslice.selection.best` gives them up."""
    return scores.detach().cpu().sort(descending=True, stable=True).indices.flip(0)


def _marginal(channels: int, counts: Sequence[int], moved: Any) -> Tensor:
    """What the k-th channel to go costs, ``[C]``, strictly increasing, from a few measurements."""
    hull = [(0.0, 0.0)]
    for point in zip(map(float, counts), np.maximum.accumulate(moved).tolist(), strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes = [_slope(a, b) for a, b in itertools.pairwise(hull)]
    middles = [(a[0] + b[0]) / 2 for a, b in itertools.pairwise(hull)]
    if not slopes:  # a group too small for any of the ratios
        return increasing(torch.zeros(channels, dtype=torch.float64))
    xs, ys = [0.0, *middles], [0.0, *slopes]
    rise = _slope((xs[-2], ys[-2]), (xs[-1], ys[-1]))
    xs, ys = [*xs, float(channels)], [*ys, ys[-1] + rise * (channels - xs[-1])]
    turns = np.arange(channels) + 0.5
    return increasing(torch.from_numpy(np.interp(turns, xs, ys)))


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _first(output: Any) -> Tensor:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise TypeError(
        f"relative_error: argument output: expected a floating-point tensor somewhere in it, got "
        f"{type(output).__name__}; give sensitivity a divergence of your own"
    )
