"""From the channels kept in each group to the positions kept on each axis of each tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infoslice.graph.channel_graph import ChannelGroup
from infoslice.graph.index_map import IndexMap

__all__ = ["AxisCut", "SizeCut", "axis_cuts", "new_shapes", "set_sizes", "size_cuts"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AxisCut:
    """Positions kept (sorted, unique, int64) on one axis of one tensor."""

    tensor: str
    axis: int
    keep: Tensor


@dataclass(frozen=True)
class SizeCut:
    """A module attribute that goes from ``old`` to ``new``."""

    module: str
    attribute: str
    position: int | None
    old: int
    new: int


def _kept(keep: Tensor, channels: int) -> Mask:
    mask = np.zeros(channels, dtype=bool)
    mask[keep.numpy()] = True
    return mask


def axis_cuts(
    groups: Iterable[ChannelGroup],
    keep: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[AxisCut, ...]:
    """What each axis keeps once every group in ``keep`` has lost its other channels.

    Several groups may share an axis (a concatenation, a flatten of two): a position goes if any
    group it belongs to removes it. Axes where the same channels lie alike share one ``keep``.

    Raises IndexError for an index map that does not fit its axis.
    """
    kept: list[Mask] = []
    lying: dict[tuple[str, int], list[tuple[int, IndexMap]]] = {}
    for group in groups:
        if group.name in keep:
            for piece in group.slices:
                where = lying.setdefault((piece.tensor, piece.axis), [])
                where.append((len(kept), piece.index_map))
            kept.append(_kept(keep[group.name], group.channels))
    known: dict[Any, Tensor] = {}
    return tuple(
        AxisCut(tensor, axis, _left(shapes[tensor][axis], where, kept, known))
        for (tensor, axis), where in lying.items()
    )


def new_shapes(
    cuts: Iterable[AxisCut], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes after the cuts, for the tensors that are cut."""
    result: dict[str, tuple[int, ...]] = {}
    for cut in cuts:
        shape = list(result.get(cut.tensor, shapes[cut.tensor]))
        shape[cut.axis] = cut.keep.numel()
        result[cut.tensor] = tuple(shape)
    return result


def size_cuts(
    groups: Iterable[ChannelGroup], keep: Mapping[str, Tensor], model: nn.Module
) -> tuple[SizeCut, ...]:
    """The attributes of the modules of ``model`` that shrink with the groups in ``keep``."""
    kept: list[Mask] = []
    lying: dict[tuple[str, str, int | None], list[tuple[int, IndexMap]]] = {}
    for group in groups:
        if group.name in keep:
            for piece in group.sizes:
                place = (piece.module, piece.attribute, piece.position)
                lying.setdefault(place, []).append((len(kept), piece.index_map))
            kept.append(_kept(keep[group.name], group.channels))
    known: dict[Any, Tensor] = {}
    cuts = []
    for place, where in lying.items():
        old = get_size(model.get_submodule(place[0]), place[1], place[2])
        if old is not None:
            cuts.append(SizeCut(*place, old, _left(old, where, kept, known).numel()))
    return tuple(cuts)


def _left(
    length: int,
    where: Iterable[tuple[int, IndexMap]],
    kept: Sequence[Mask],
    known: dict[Any, Tensor],
) -> Tensor:
    """Positions left on an axis on which the channels of groups lie like this."""
    key = (length, *where)
    if key not in known:
        left = np.ones(length, dtype=bool)
        for number, index_map in where:
            index_map.view(left)[:] &= kept[number][:, None]
        known[key] = torch.from_numpy(np.flatnonzero(left))
    return known[key]


def get_size(module: nn.Module, attribute: str, position: int | None) -> int | None:
    """The number a module keeps under ``attribute``, None if it keeps no such number."""
    value: Any = module
    for name in attribute.split("."):
        declared = getattr(type(value), name, None)
        if isinstance(declared, property) and declared.fset is None:
            return None  # computed from something else
        value = getattr(value, name, None)
    if position is not None:
        known = isinstance(value, (tuple, list)) and position < len(value)
        value = value[position] if known else None
    return value if type(value) is int else None


def set_sizes(model: nn.Module, cuts: Iterable[SizeCut]) -> None:
    """Write the new sizes into the modules of ``model``."""
    for cut in cuts:
        holder: Any = model.get_submodule(cut.module)
        *outer, attribute = cut.attribute.split(".")
        for name in outer:  # an object that other modules may hold as well
            inner = copy.copy(getattr(holder, name))
            setattr(holder, name, inner)
            holder = inner
        new: Any = cut.new
        if cut.position is not None:
            new = list(getattr(holder, attribute))
            new[cut.position] = cut.new
            new = tuple(new)
        setattr(holder, attribute, new)
