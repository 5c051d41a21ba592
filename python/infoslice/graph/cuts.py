"""From the channels kept in each group to the positions kept on each axis of each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infoslice.graph.channel_graph import ChannelGroup

__all__ = ["AxisCut", "SizeCut", "axis_cuts", "new_shapes", "set_sizes", "size_cuts"]


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


def _removed(keep: Tensor, channels: int) -> Tensor:
    gone = torch.ones(channels, dtype=torch.bool)
    gone[keep] = False
    return gone.nonzero().reshape(-1)


def axis_cuts(
    groups: Iterable[ChannelGroup],
    keep: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[AxisCut, ...]:
    """What each axis keeps once every group in ``keep`` has lost its other channels.

    Several groups may share an axis (a concatenation, a flatten of two): a position goes if any
    group it belongs to removes it.
    """
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if group.name not in keep:
            continue
        gone = _removed(keep[group.name], group.channels)
        for piece in group.slices:
            key = (piece.tensor, piece.axis)
            if key not in masks:
                masks[key] = torch.ones(shapes[piece.tensor][piece.axis], dtype=torch.bool)
            masks[key][piece.index_map.indices(gone)] = False
    return tuple(
        AxisCut(tensor, axis, mask.nonzero().reshape(-1)) for (tensor, axis), mask in masks.items()
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
    gone: dict[tuple[str, str, int | None], list[Tensor]] = {}
    for group in groups:
        if group.name in keep:
            removed = _removed(keep[group.name], group.channels)
            for piece in group.sizes:
                key = (piece.module, piece.attribute, piece.position)
                gone.setdefault(key, []).append(piece.index_map.indices(removed))
    result: list[SizeCut] = []
    for (module, attribute, position), positions in gone.items():
        old = get_size(model.get_submodule(module), attribute, position)
        if old is not None:
            count = len(set(torch.cat(positions).tolist()))
            result.append(SizeCut(module, attribute, position, old, old - count))
    return tuple(result)


def get_size(module: nn.Module, attribute: str, position: int | None) -> int | None:
    """The number a module keeps under ``attribute``, None if it keeps no such number."""
    declared = getattr(type(module), attribute, None)
    if isinstance(declared, property) and declared.fset is None:
        return None  # computed from something else
    value = getattr(module, attribute, None)
    if position is not None:
        value = value[position] if isinstance(value, (tuple, list)) and value else None
    return value if type(value) is int else None


def set_sizes(model: nn.Module, cuts: Iterable[SizeCut]) -> None:
    """Write the new sizes into the modules of ``model``."""
    for cut in cuts:
        module = model.get_submodule(cut.module)
        if cut.position is None:
            setattr(module, cut.attribute, cut.new)
        else:
            value = list(getattr(module, cut.attribute))
            value[cut.position] = cut.new
            setattr(module, cut.attribute, tuple(value))
