"""What ``trace`` returns: groups of channels that can only be removed together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from infoslice.graph.costs import Costs
from infoslice.graph.dims import Atom, Dim
from infoslice.graph.index_map import IndexMap
from infoslice.graph.recording import Node
from infoslice.graph.views import explain, to_dot
from infoslice.graph.walk import Role

__all__ = ["ChannelGraph", "ChannelGroup", "ChannelSlice", "Signature", "SizeSlice"]


class ChannelSlice(NamedTuple):
    """One axis of one parameter or buffer and where the group's channels lie along it.

    ``module`` writes ("out"), reads ("in") or carries along ("follow") the channels with it. A tied
    tensor has a slice for each module and role it serves.
    """

    tensor: str
    axis: int
    index_map: IndexMap
    module: str
    role: Role


class SizeSlice(NamedTuple):
    """A number a module keeps (``num_features``, ...) that shrinks with the group.

    Removing a channel takes ``index_map.run * index_map.repeat`` off it.
    ``position`` is the place within a tuple (``normalized_shape``), None for a plain number.
    """

    module: str
    attribute: str
    position: int | None
    index_map: IndexMap


@dataclass(frozen=True)
class ChannelGroup:
    """Channels coupled across layers: channel c of the group is removed everywhere or nowhere.

    ``producers`` write the channels, ``consumers`` read them, ``followers`` carry them along
    (normalisations, depthwise convolutions, PReLU, per-channel scales). ``renormalised`` names the
    operators that compute statistics *across* the group's channels (layer norm): after a cut they
    do so over the channels that are left, so that there slicing differs from zeroing. ``kind`` says
    what one channel is where it is more than a single index ("head of width 64"); a kernel may ask
    that as many stay as a multiple of ``step``.
    """

    name: str
    channels: int
    slices: tuple[ChannelSlice, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    followers: tuple[str, ...]
    prunable: bool
    reason: str
    sizes: tuple[SizeSlice, ...] = ()
    renormalised: tuple[str, ...] = ()
    kind: str = field(default="channel", compare=False)
    step: int = field(default=1, compare=False)

    @property
    def lengths(self) -> dict[tuple[str, int], int]:
        """(tensor, axis) -> how many positions one channel takes there."""
        maps = {(s.tensor, s.axis, s.index_map) for s in self.slices}
        taken = dict.fromkeys(((s.tensor, s.axis) for s in self.slices), 0)
        for tensor, axis, index_map in maps:
            taken[tensor, axis] += index_map.run * index_map.repeat
        return taken

    def describe(self) -> str:
        """A few lines of text: who is coupled, and why the group is left whole if it is."""
        state = "prunable" if self.prunable else f"left whole: {self.reason}"
        least = min(self.lengths.values(), default=1)
        kind = f"set of {least} channels" if self.kind == "channel" and least > 1 else self.kind
        each = "" if kind == "channel" else f", each a {kind}"
        if self.prunable and self.step > 1:
            state += f", kept in multiples of {self.step}"
        lines = [f"{self.name}: {self.channels} channels{each}, {state}"]
        for title, names in (
            ("written by", self.producers),
            ("read by", self.consumers),
            ("carried by", self.followers),
            ("renormalised by", self.renormalised),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(names)}")
        wide: dict[int, list[str]] = {}
        for (tensor, axis), length in self.lengths.items():
            if length > 1:
                wide.setdefault(length, []).append(f"{tensor} axis {axis}")
        lines.extend(f"  one takes {n} of: {', '.join(places)}" for n, places in wide.items())
        return "\n".join(lines)


@dataclass(frozen=True)
class Signature:
    """The captured operators with the predicted structure of every result, for checking copies.

    ``starts``: what a slice leaves out before the piece it takes. ``weights``: the axes of every
    parameter and buffer; ``parameters``: which of them are parameters.
    """

    nodes: tuple[Node, ...]
    dims: Mapping[Node, tuple[tuple[Dim, ...], ...]]
    starts: Mapping[Node, Dim]
    atoms: Mapping[str, Atom]
    weights: Mapping[str, tuple[Dim, ...]]
    parameters: frozenset[str]


@dataclass(frozen=True)
class ChannelGraph:
    """The channel groups of a traced model; see :func:`infoslice.trace`.

    ``groups``: in execution order of the first producer, those left whole included.
    ``layers``: module paths that hold the weights in use, in execution order of the first call.
    ``whole``: module path -> reason, for everything left alone.
    ``tensors``: parameter and buffer name -> (shape, dtype), each tied tensor once.
    ``inputs``, ``forward_fn``: with what the model was called, and how if not as usual.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[str, ...]
    whole: Mapping[str, str]
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    inputs: Any = field(repr=False)
    signature: Signature = field(repr=False, compare=False)
    forward_fn: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    def group(self, name: str) -> ChannelGroup:
        """The group of that name. Raises ValueError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        known = ", ".join(group.name for group in self.groups)
        raise ValueError(f"ChannelGraph.group: argument name: expected one of {known}; got {name}")

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that may be cut."""
        return tuple(group for group in self.groups if group.prunable)

    @functools.cached_property
    def costs(self) -> Costs:
        """What the model costs at any widths: parameters, MACs, bytes, seconds."""
        return Costs(self)

    def explain(self, path: str) -> str:
        """As text: the groups that a module reads, carries and writes, or why it is left whole.

        With each group come the modules that hang together with it, and the operators that join
        them. A module that holds others is explained layer by layer, ``""`` the whole model.

        Raises ValueError if no module with weights has this path or lies below it.
        """
        return explain(self, path)

    def to_dot(self) -> str:
        """A drawing for Graphviz: layers (boxes), and the groups they write and read (ellipses).

        ``dot -Tsvg`` makes a picture of it. Groups left whole are grey.
        """
        return to_dot(self)

    def describe(self) -> str:
        """All groups, then all that is left whole, as text."""
        lines = [group.describe() for group in self.groups]
        if self.whole:
            lines.append("left whole:")
            lines.extend(f"  {path}: {reason}" for path, reason in self.whole.items())
        return "\n".join(lines)
