"""What one channel of a group is: a head, a group of a convolution, ... told from the operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from infoslice.graph.channel_graph import ChannelSlice
from infoslice.graph.dims import Atom, Dim, Prod, resolve, size
from infoslice.graph.recording import Node, argument, operator_name
from infoslice.graph.walk import Value, Walk

__all__ = ["kinds_of_channels"]

_PRODUCTS = ("bmm", "matmul", "baddbmm", "scaled_dot_product_attention")


_OPERANDS = ("query", "key")  # of attention; of plain products they come by position


def kinds_of_channels(walk: Walk, slices: Mapping[Atom, Sequence[ChannelSlice]]) -> dict[Atom, str]:
    """Atom -> a noun phrase, for atoms that are more than a plain channel. Names tell nothing.

    ``slices``: where the atoms lie on weights.
    """
    kinds: dict[Atom, str] = {}
    for node in walk.values:
        kind = operator_name(node).removeprefix("aten::")
        if kind in _PRODUCTS:
            for atom, text in _heads(walk, node, 1 if kind == "baddbmm" else 0, slices):
                kinds.setdefault(atom, text)
        elif kind == "group_norm":
            for atom, text in _blocks(walk, node, 1, 1, "a group norm"):
                kinds.setdefault(atom, text)
        elif kind.startswith("conv") or kind == "_convolution":
            x, weight = (
                walk.value(argument(node, 0, "input")),
                walk.value(argument(node, 1, "weight")),
            )
            channel = len(x.dims) - len(weight.dims) + 1 if x and weight else 0
            place = 8 if "convolution" in kind else 6
            for atom, text in _blocks(walk, node, place, channel, "a convolution"):
                kinds.setdefault(atom, text)
    return kinds


def _factors(dim: Dim) -> Sequence[Dim]:
    dim = resolve(dim)
    return dim.factors if isinstance(dim, Prod) else (dim,)


def _heads(
    walk: Walk, node: Node, first: int, slices: Mapping[Atom, Sequence[ChannelSlice]]
) -> Iterator[tuple[Atom, str]]:
    """The axes in front of a product of activations, told by those of the queries."""
    queries, keys = (walk.value(argument(node, first + i, _OPERANDS[i])) for i in (0, 1))
    if queries is None or keys is None or keys.tensor is not None or len(keys.dims) < 3:
        return
    for factors in map(_factors, queries.dims[:-2]):
        for place, atom in enumerate(factors):
            if not isinstance(atom, Atom) or atom.reason or atom not in slices:
                continue
            runs = [
                piece.index_map.run
                for piece in slices[atom]
                if piece.role == "out" and len(walk.weights[piece.tensor].dims) > 1
            ]
            narrow, wide = min(runs, default=1), max(runs, default=1)
            outer = prod(size(f) for f in factors[:place] if isinstance(f, Atom) and not f.reason)
            inner = prod(map(size, factors[place + 1 :]))
            if outer > 1:
                yield atom, f"query head of width {wide} in each of {outer} key/value groups"
            elif inner > 1 and wide == inner * narrow:
                yield atom, f"key/value group with {inner} query heads of width {narrow}"
            else:
                yield atom, f"head of width {wide}"


def _blocks(
    walk: Walk, node: Node, place: int, channel: int, what: str
) -> Iterator[tuple[Atom, str]]:
    """Groups of channels that an operator keeps apart, and channels that all groups have."""
    x, result = walk.value(argument(node, 0, "input")), walk.values[node]
    groups: int = argument(node, place, "num_groups" if place == 1 else "groups", 1)
    if x is None or not isinstance(result, Value) or groups in (1, size(x.dims[channel])):
        return
    for dim in (x.dims[channel], result.dims[channel]):
        outer, factors = 1, _factors(dim)
        for number, factor in enumerate(factors):
            inner = prod(map(size, factors[number + 1 :]))
            if isinstance(factor, Atom) and not factor.reason and inner * outer > 1:
                if outer * size(factor) <= groups:
                    yield factor, f"group of {inner} channels of {what}"
                elif outer == groups:
                    yield factor, f"channel in each of the {groups} groups of {what}"
            outer *= size(factor)
