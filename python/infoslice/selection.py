"""From scores and a ratio to the channels that stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

__all__ = ["Allocation", "check_ratio", "select"]

Allocation = Literal["uniform", "global"]


def check_ratio(function: str, name: str, ratio: float) -> None:
    """Raise ValueError unless ``0 <= ratio < 1``."""
    if not 0 <= ratio < 1:
        raise ValueError(f"{function}: argument {name}: expected a number in [0, 1), got {ratio}")


def select(
    scores: Mapping[str, Tensor],
    pruning_ratio: float,
    *,
    allocation: Allocation = "global",
    max_pruning_ratio: float | None = None,
    round_to: int = 1,
) -> dict[str, Tensor]:
    """Channels to keep in every group: the best scores, lowest index first among equals.

    Args:
        scores: group name -> float ``[C]``, high = keep.
        pruning_ratio: share of the channels to remove, in [0, 1), rounded down to whole channels.
        allocation: ``"uniform"``: this share of every group; ``"global"``: of all channels
            together, wherever the scores are lowest (they must then compare between groups, as
            information in nats does).
        max_pruning_ratio: at most this share of any one group, in [0, 1); by default half-way from
            ``pruning_ratio`` to all of it, so that no layer is closed. At least one channel always
            stays. Where a cap below ``pruning_ratio`` binds, fewer channels go than asked for.
        round_to: the number kept in a group is rounded up to a multiple of this (never beyond its
            size).

    Returns:
        Group name -> sorted, unique int64 indices of the channels that stay.

    Raises:
        ValueError: an argument out of range; a score that is NaN.
    """
    check_ratio("select", "pruning_ratio", pruning_ratio)
    if max_pruning_ratio is None:
        max_pruning_ratio = (1 + pruning_ratio) / 2
    check_ratio("select", "max_pruning_ratio", max_pruning_ratio)
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
    limits = {
        name: min(_share(max_pruning_ratio, len(values)), len(values) - 1)
        for name, values in scores.items()
    }
    if allocation == "uniform":
        counts = {n: min(_share(pruning_ratio, len(v)), limits[n]) for n, v in scores.items()}
    else:
        counts = _lowest(scores, pruning_ratio, limits)
    keep: dict[str, Tensor] = {}
    for name, values in scores.items():
        kept = len(values) - counts[name]
        kept = min(len(values), -(-kept // round_to) * round_to)
        best = values.sort(descending=True, stable=True).indices[:kept]
        keep[name] = best.sort().values
    return keep


def _lowest(
    scores: Mapping[str, Tensor], ratio: float, limits: Mapping[str, int]
) -> dict[str, int]:
    """How many channels each group loses when the lowest scores of all go."""
    total = sum(len(values) for values in scores.values())
    candidates = [
        (float(score), name)
        for name, values in scores.items()
        for score in values.sort().values[: limits[name]]
    ]
    candidates.sort()
    counts = dict.fromkeys(scores, 0)
    for _, name in candidates[: _share(ratio, total)]:
        counts[name] += 1
    return counts


def _share(ratio: float, count: int) -> int:
    """``floor(ratio * count)``, with 0.29 * 100 = 28.999... taken for 29."""
    return math.floor(ratio * count + 1e-9)
