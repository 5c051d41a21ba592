"""From scores and a ratio or a budget to the channels that stay."""

from __future__ import annotations

import bisect
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infoslice.graph import ChannelGraph, ChannelGroup

__all__ = [
    "Allocation",
    "Budget",
    "best",
    "check_ratio",
    "increasing",
    "per_cost",
    "select",
    "uniform_ratio",
]

Allocation = Literal["uniform", "global", "per_macs", "per_parameters", "sensitivity"]
Cost = Literal["parameters", "macs", "memory", "latency"]
# What the smaller model may cost: a number in the unit of the cost, or a share like "60%".
Budget = Mapping[str, float | str]

T = TypeVar("T")
Counts = npt.NDArray[np.int64]  # channels per group, in the order of the scores


def check_ratio(function: str, name: str, ratio: float) -> None:
    """Raise ValueError unless ``0 <= ratio < 1``."""
    if not 0 <= ratio < 1:
        raise ValueError(f"{function}: argument {name}: expected a number in [0, 1), got {ratio}")


def select(
    scores: Mapping[str, Tensor],
    pruning_ratio: float | None = None,
    *,
    budget: Budget | None = None,
    graph: ChannelGraph | None = None,
    pruning_ratio_dict: Mapping[str, float] | None = None,
    allocation: Allocation = "global",
    max_pruning_ratio: float | None = None,
    round_to: int = 1,
) -> dict[str, Tensor]:
    """Channels to keep in every group: the best scores, lowest index first among equals.

    Args:
        scores: group name -> float ``[C]``, high = keep.
        pruning_ratio: share of the channels to remove, in [0, 1), rounded down to whole channels.
            Either this or a budget must be given.
        budget: what the whole model may cost afterwards, all of it: ``"parameters"``, ``"macs"``
            (of one forward on the example inputs), ``"memory"`` (bytes of weights), ``"latency"``
            (seconds of one forward, see :meth:`infoslice.graph.Costs.latency`) -> a number or a
            share like ``"60%"``. As few channels go as meet it; costs are those after rounding.
        graph: that the groups are of. A budget needs it, and so do module paths in
            ``pruning_ratio_dict`` and an allocation per cost.
        pruning_ratio_dict: own ratios for some groups, 0 to leave them whole: a group name, or a
            path or pattern (``"layer1"``, ``"*.conv2"``) of modules that write the group -> share
            of its channels. The longest key that fits a group counts, the least ratio among equals.
            The other groups share ``pruning_ratio`` or what is left of the budget.
        allocation: ``"uniform"``: the same share of every group; ``"global"``: of all channels
            together, wherever the scores are lowest (they must then compare between groups, as
            information in nats does). ``"per_macs"`` and ``"per_parameters"``: where they are
            lowest for what the removal saves, see :func:`per_cost`. ``"sensitivity"``: the scores
            are those of :func:`infoslice.allocation.sensitivity`; with a budget of one cost they
            are taken per unit of it, else as ``"global"``.
        max_pruning_ratio: at most this share of any one group, in [0, 1); by default half-way from
            ``pruning_ratio`` to all of it (with a budget: from the uniform ratio that meets it), so
            that no layer is closed. At least one channel always stays. Where a cap below
            ``pruning_ratio`` binds, fewer channels go than asked for.
        round_to: the number kept in a group is rounded up to a multiple of this (never beyond its
            size); with a ``graph``, the length of the axes that its layers write, so that heads of
            64 are multiples of 8 already, and of the ``step`` of the group.

    Returns:
        Group name -> sorted, unique int64 indices of the channels that stay.

    Raises:
        ValueError: an argument out of range; a score that is NaN; a key that fits no group; a
            budget out of reach, with the least that can be had.
    """
    if (pruning_ratio is None) == (budget is None):
        raise ValueError(
            "select: arguments pruning_ratio and budget: expected one of the two, got "
            f"{'neither' if budget is None else 'both'}"
        )
    if budget is not None and graph is None:
        raise ValueError(
            "select: argument graph: expected that of the model for a budget, got None"
        )
    if allocation.startswith("per_") and graph is None:
        raise ValueError(
            f"select: argument graph: expected that of the model for allocation {allocation!r}, "
            f"got None"
        )
    for name, ratio in (("pruning_ratio", pruning_ratio), ("max_pruning_ratio", max_pruning_ratio)):
        if ratio is not None:
            check_ratio("select", name, ratio)
    if round_to < 1:
        raise ValueError(f"select: argument round_to: expected at least 1, got {round_to}")
    if allocation not in get_args(Allocation):
        raise ValueError(
            f"select: argument allocation: expected one of {get_args(Allocation)}, got "
            f"{allocation!r}"
        )
    for name, values in scores.items():
        if values.dim() != 1 or not len(values) or bool(values.isnan().any()):
            raise ValueError(
                f"select: argument scores: expected one number per channel, got "
                f"{'NaN' if values.dim() == 1 and len(values) else tuple(values.shape)} for group "
                f"{name}"
            )
    room = _Room(scores, graph, pruning_ratio_dict or {}, round_to)
    meter = None if graph is None or budget is None else _Meter(graph, budget, list(scores))
    if max_pruning_ratio is None:
        typical = pruning_ratio if meter is None else meter.least(room.ratios(), room.uniform)
        max_pruning_ratio = (1 + (typical or 0.0)) / 2
    room.cap = max_pruning_ratio
    if allocation == "uniform":
        ratio = pruning_ratio if meter is None else meter.least(room.ratios(), room.uniform)
        kept = room.uniform(ratio or 0.0)
    else:
        order = room.order(_priced(scores, graph, allocation, budget))
        if meter is None:
            count = _share(pruning_ratio or 0.0, int(room.sizes[room.shared].sum()))
        else:
            count = meter.least(range(len(order) + 1), lambda count: room.without(order[:count]))
        kept = room.without(order[:count])
    return {
        name: best(values, count)
        for (name, values), count in zip(scores.items(), kept.tolist(), strict=True)
    }


def best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` channels of the highest scores, sorted; lowest index first among equals."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def increasing(losses: Tensor) -> Tensor:
    """Strictly, and at least as given, so that a ranking by score is the order of removal."""
    last, result = 0.0, []
    for loss in losses.tolist():
        last = max(loss, last + torch.finfo(torch.float64).eps * (1.0 + last))
        result.append(last)
    return torch.tensor(result, dtype=torch.float64)


def uniform_ratio(
    graph: ChannelGraph,
    budget: Budget,
    groups: Iterable[str] | None = None,
    *,
    pruning_ratio_dict: Mapping[str, float] | None = None,
    round_to: int = 1,
) -> float:
    """The smallest ratio that, taken of every group alike, meets the budget; no scores needed.

    ``groups``: names of those that are cut, by default all prunable ones; the rest as for
    :func:`select`. Raises ValueError for a budget out of reach.
    """
    names = list(groups) if groups is not None else [group.name for group in graph.prunable]
    blank = {name: torch.empty(graph.group(name).channels) for name in names}
    room = _Room(blank, graph, pruning_ratio_dict or {}, round_to)
    return _Meter(graph, budget, names).least(room.ratios(), room.uniform)


def per_cost(
    scores: Mapping[str, Tensor], graph: ChannelGraph, cost: Cost = "macs"
) -> dict[str, Tensor]:
    """Scores per unit of ``cost`` that removing one channel of the group saves.

    With these, :func:`select` removes first what loses least for what it saves, as a knapsack is
    filled. Savings are taken at the full widths; a group that saves nothing scores infinity.
    Raises ValueError for a name that is no prunable group.
    """
    costs = graph.costs
    stray = sorted(set(scores) - set(costs.groups))
    if stray:
        raise ValueError(
            f"per_cost: argument scores: expected prunable groups of the graph, got {stray}"
        )
    full = costs.widths()
    saved = costs.at(cost, full) - costs.at(cost, full - np.eye(len(full), dtype=np.int64))
    price = dict(zip(costs.groups, saved.tolist(), strict=True))
    return {
        name: values / price[name] if price[name] > 0 else torch.full_like(values, torch.inf)
        for name, values in scores.items()
    }


def _priced(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph | None,
    allocation: Allocation,
    budget: Budget | None,
) -> Mapping[str, Tensor]:
    """Scores in the unit in which the allocation compares them."""
    cost: str = {"per_macs": "macs", "per_parameters": "parameters"}.get(allocation, "")
    if allocation == "sensitivity" and budget is not None and len(budget) == 1:
        cost = next(iter(budget))
    if graph is None or cost in ("", "latency"):  # what one channel saves of it is no fixed number
        return scores
    return per_cost(scores, graph, cast(Cost, cost))


class _Room:
    """How many channels each group may lose. Arrays are int64 ``[groups]``, ordered as the scores.

    ``cap``: at most this share of a group; ``shared``: groups without a ratio of their own.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        graph: ChannelGraph | None,
        own: Mapping[str, float],
        round_to: int,
    ) -> None:
        for name, ratio in own.items():
            check_ratio("select", f"pruning_ratio_dict[{name!r}]", ratio)
        self.cap = 1.0
        self.sizes: Counts = np.array([len(values) for values in scores.values()], dtype=np.int64)
        groups = {} if graph is None else {group.name: group for group in graph.groups}
        fitting = {name: _fitting(own, name, groups.get(name)) for name in (*groups, *scores)}
        unused = set(own).difference(*fitting.values())
        if unused:
            raise ValueError(
                f"select: argument pruning_ratio_dict: expected names or modules of groups, got "
                f"{sorted(unused)}"
                + (" (module paths need the argument graph)" if graph is None else "")
            )
        ratios = [
            min(((-len(key), own[key]) for key in fitting[name]), default=(0, math.nan))[1]
            for name in scores
        ]
        self._own = np.array(ratios)
        self.shared = np.isnan(self._own)
        self._steps = np.array([_step(groups.get(name), round_to) for name in scores])

    def ratios(self) -> list[float]:
        """All ratios that make a difference, ascending."""
        sizes = set(self.sizes[self.shared].tolist())
        return sorted({k / size for size in sizes for k in range(size)} | {0.0})

    def limits(self, ratio: float) -> Counts:
        """Channels that go at this ratio, before rounding."""
        ratios = np.where(self.shared, min(ratio, self.cap), self._own)
        whole = np.floor(ratios * self.sizes + 1e-9).astype(np.int64)
        limited: Counts = np.minimum(whole, self.sizes - 1)
        return limited

    def uniform(self, ratio: float) -> Counts:
        """Channels kept when every group loses this share."""
        return self._rounded(self.limits(ratio))

    def order(self, scores: Mapping[str, Tensor]) -> npt.NDArray[np.intp]:
        """The group of every channel that may go, lowest score of all first."""
        limits = np.where(self.shared, self.limits(1.0), 0)
        lowest = [
            np.sort(values.detach().cpu().double().numpy())[:limit]
            for values, limit in zip(scores.values(), limits.tolist(), strict=True)
        ]
        names = sorted(range(len(scores)), key=list(scores).__getitem__)
        group = np.repeat(names, [len(lowest[i]) for i in names])
        values = np.concatenate([lowest[i] for i in names]) if names else np.empty(0)
        ordered: npt.NDArray[np.intp] = group[np.argsort(values, kind="stable")].astype(np.intp)
        return ordered

    def without(self, gone: npt.NDArray[np.intp]) -> Counts:
        """Channels kept when these go, each given by the number of its group."""
        return self._rounded(
            np.where(self.shared, np.bincount(gone, minlength=len(self.sizes)), self.limits(0.0))
        )

    def _rounded(self, removed: Counts) -> Counts:
        up = -(-(self.sizes - removed) // self._steps) * self._steps
        rounded: Counts = np.minimum(self.sizes, up)
        return rounded


class _Meter:
    """Tells whether a model whose groups keep so many channels meets a budget."""

    def __init__(self, graph: ChannelGraph, budget: Budget, names: Sequence[str]) -> None:
        self._costs = graph.costs
        unknown = sorted(set(budget) - set(get_args(Cost)))
        if unknown or not budget:
            raise ValueError(
                f"select: argument budget: expected some of {get_args(Cost)}, got {unknown}"
            )
        stray = sorted(set(names) - set(self._costs.groups))
        if stray:
            raise ValueError(
                f"select: argument scores: expected prunable groups of the graph, got {stray}"
            )
        self._places = [self._costs.groups.index(name) for name in names]
        self._limits = {
            cost: _limit(cost, limit, float(self._costs.at(cost, self._costs.channels)))
            for cost, limit in budget.items()
        }

    def over(self, kept: Counts) -> dict[str, float]:
        """The costs that exceed their limits."""
        widths = self._costs.channels.copy()
        widths[self._places] = kept
        found = {cost: self._costs.at(cost, widths).item() for cost in self._limits}
        return {cost: value for cost, value in found.items() if value > self._limits[cost]}

    def least(self, options: Sequence[T], kept: Callable[[T], Counts]) -> T:
        """The first of the options, which remove ever more, that meets the budget.

        Latency takes a while to measure, no better than a few per cent, so that 32 of them must do;
        nor need it fall with every channel (kernels like some widths), so that all are then tried.
        """

        def met(option: T) -> bool:
            return not self.over(kept(option))

        if "latency" in self._limits:
            stride = -(-len(options) // 32)
            options = [*options[:-1:stride], options[-1]]
        place = bisect.bisect_left(options, True, key=met)
        if place == len(options) and "latency" in self._limits:
            place = next((i for i, option in enumerate(options) if met(option)), place)
        if place == len(options):
            listed = "; ".join(
                f"at most {self._limits[cost]:,g} {cost}, got {value:,g} at the least"
                for cost, value in self.over(kept(options[-1])).items()
            )
            raise ValueError(
                f"select: argument budget: expected one within reach of the groups, their caps and "
                f"round_to: {listed}"
            )
        return options[place]


def _limit(cost: str, limit: float | str, full: float) -> float:
    """A budget in the unit of the cost. ``full``: what the whole model costs."""
    share = isinstance(limit, str)
    try:
        number = float(limit.rstrip().removesuffix("%")) if isinstance(limit, str) else float(limit)
    except ValueError:
        number = math.nan
    small = not share and cost != "latency" and number < 1
    if not number > 0 or small or (isinstance(limit, str) and not limit.rstrip().endswith("%")):
        raise ValueError(
            f"select: argument budget: expected a positive number or a share like '60%' for "
            f"{cost}, got {limit!r}"
        )
    return full * number / 100 if share else number


def _fitting(keys: Iterable[str], name: str, group: ChannelGroup | None) -> set[str]:
    """The keys that name the group, or a module or parent of a module that writes it."""
    modules = () if group is None else group.producers
    return {
        key
        for key in keys
        if key == name
        or any(fnmatch.fnmatchcase(m, key) or m.startswith(f"{key}.") for m in modules)
    }


def _step(group: ChannelGroup | None, round_to: int) -> int:
    """The number kept is to be a multiple of this for axes of a multiple of ``round_to``."""
    if group is None:
        return round_to
    written = {(piece.tensor, piece.axis) for piece in group.slices if piece.role == "out"}
    lengths = [group.lengths[axis] for axis in written]  # by one channel
    return math.lcm(round_to // math.gcd(round_to, *lengths), group.step)


def _share(ratio: float, count: int) -> int:
    """``floor(ratio * count)``, with 0.29 * 100 = 28.999... taken for 29."""
    return math.floor(ratio * count + 1e-9)
