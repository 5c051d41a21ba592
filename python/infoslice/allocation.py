"""How much each group may lose, measured: what cutting it alone does to the network's output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from infoslice.graph import ChannelGraph, ChannelGroup
from infoslice.perturbation import Inputs, evaluating
from infoslice.progress import track
from infoslice.selection import increasing

__all__ = ["Divergence", "relative_error", "sensitivity"]

# (output of the network with one group cut, output of the whole network) -> a number >= 0
Divergence = Callable[[Any, Any], Tensor | float]


def relative_error(output: Any, original: Any) -> float:
    """``|y - y0|^2 / |y0|^2`` of the first floating-point tensor of the output (the logits)."""
    y, y0 = (_first(found).detach().double() for found in (output, original))
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
    batch_size: int = 64,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """Scores of all groups in one unit: how far the removal of a channel moves the output.

    Each group alone is cut at every ratio, in the order of its scores, by silencing the channels
    (the weights that read them become zero), and the output is compared with the original's. The
    largest convex curve below these points, through zero, gives what the next channel costs at any
    width: its slopes, interpolated between the middles of its segments and extended beyond the last
    by the same rise. The new score of a channel is that slope at its turn. With these
    :func:`infoslice.selection.select` takes the next channel where it costs least, until the ratio
    or budget is met: at the widths found, all groups are equally sensitive.

    Groups are taken to add up, and what a compensation would mend is counted in full. Cost: a
    forward of all inputs for each group and ratio and one more; memory: one batch and copies of the
    weights that read one group.

    Args:
        graph: of the model.
        model: nothing of it changes; run in eval mode.
        inputs: what is put in.
        scores: group name -> float ``[C]``, high = keep, of any unit: the order alone counts.
        ratios: ascending, in (0, 1), rounded down to whole channels.
        divergence: of two outputs, a mean over the samples of a batch; :func:`relative_error`, or
            for a classifier a Kullback-Leibler divergence.
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
    moved = {name: np.zeros(len(found)) for name, found in counts.items()}
    total = inputs.samples()
    starts = range(0, total, batch_size)
    jobs = [(start, group) for start in starts for group in groups]
    original: Any = None
    with evaluating(model):
        for start, group in track(jobs, "cutting groups alone", show=show_progress):
            batch = inputs.map(lambda t, start=start: t[start : start + batch_size])
            if group is groups[0]:
                original = model(*batch.args, **batch.kwargs)
            reading = _reading(group, model)
            for i, count in enumerate(counts[group.name]):
                _silence_(group, reading, order[group.name][:count])
                output = functional_call(model, reading, batch.args, dict(batch.kwargs))
                found = float(divergence(output, original))
                if not 0 <= found < math.inf:
                    raise ValueError(
                        f"sensitivity: argument divergence: expected finite numbers >= 0, got "
                        f"{found} for group '{group.name}' without {count} of its channels"
                    )
                moved[group.name][i] += found * batch.samples() / total
    return {
        group.name: _marginal(group.channels, counts[group.name], moved[group.name]).index_select(
            0, order[group.name].argsort()
        )
        for group in groups
    }


def _lowest_first(scores: Tensor) -> Tensor:
    """Channels in the order in which :func:`infoslice.selection.best` gives them up."""
    return scores.detach().cpu().sort(descending=True, stable=True).indices.flip(0)


def _reading(group: ChannelGroup, model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that read the group."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = {piece.tensor for piece in group.slices if piece.role == "in"}
    return {name: tensors[name].detach().clone() for name in sorted(names)}


def _silence_(group: ChannelGroup, reading: Mapping[str, Tensor], channels: Tensor) -> None:
    for piece in group.slices:
        if piece.role == "in":
            tensor = reading[piece.tensor]
            places = piece.index_map.indices(channels).to(tensor.device)
            tensor.index_fill_(piece.axis, places, 0)


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
