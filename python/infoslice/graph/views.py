"""A graph for people: what a module has to do with which groups, and a drawing of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infoslice.graph.dims import Atom, atoms
from infoslice.graph.recording import Node, call_site

if TYPE_CHECKING:  # that module offers these views as methods
    from infoslice.graph.channel_graph import ChannelGraph, ChannelGroup

__all__ = ["explain", "to_dot"]


def explain(graph: ChannelGraph, path: str) -> str:
    """See :meth:`infoslice.ChannelGraph.explain`."""

    def inside(module: str) -> bool:
        return not path or module == path or module.startswith(f"{path}.")

    modules = dict.fromkeys(filter(inside, (*graph.layers, *graph.whole)))
    if not modules:
        raise ValueError(
            f"ChannelGraph.explain: argument path: expected a module with weights, or one that "
            f"holds some, got {path!r}"
        )
    lines: list[str] = []
    told: set[str] = set()
    for module in modules:
        lines.append(f"{module or '(model)'}:")
        for verb, group in _roles(graph, module):
            if group.name in told:
                lines.append(f"  {verb} {group.name}, as above")
                continue
            told.add(group.name)
            lines.append(f"  {verb} {group.describe().replace(chr(10), chr(10) + '  ')}")
            joints = _joints(graph, graph.signature.atoms[group.name])
            if joints:
                lines.append(f"    joined by: {', '.join(joints)}")
        if module in graph.whole:
            lines.append(f"  left whole: {graph.whole[module]}")
    return "\n".join(lines)


def _roles(graph: ChannelGraph, module: str) -> Iterator[tuple[str, ChannelGroup]]:
    for group in graph.groups:
        for verb, modules in (
            ("reads", group.consumers), ("carries", group.followers), ("writes", group.producers),
        ):  # fmt: skip
            if module in modules:
                yield verb, group


def _joints(graph: ChannelGraph, atom: Atom) -> dict[str, None]:
    """The operators where the channels meet themselves on another way (sums, gates, products)."""
    dims = graph.signature.dims
    weights = {value for value in dims if value.op == "placeholder"}

    def carries(node: Node) -> bool:
        return node not in weights and any(
            part is atom for axes in dims.get(node, ()) for dim in axes for part in atoms(dim)
        )

    called = (node for node in graph.signature.nodes if node.op == "call_function")
    return {call_site(node): None for node in called if sum(map(carries, node.inputs)) > 1}


def to_dot(graph: ChannelGraph) -> str:
    """See :meth:`infoslice.ChannelGraph.to_dot`."""
    lines = ["digraph channels {", "  rankdir=LR; node [fontname=Helvetica, fontsize=10];"]
    drawn = {module for group in graph.groups for module in (*group.producers, *group.consumers)}
    for layer in (layer for layer in graph.layers if layer in drawn):
        lines.append(f"  {_quoted('layer ' + layer)} [shape=box, label={_quoted(layer)}];")
    for group in graph.groups:
        label = f"{group.channels}" + (f" x {group.kind}" if group.kind != "channel" else "")
        look = "fillcolor=lightblue" if group.prunable else "fillcolor=grey90, color=grey60"
        tip = group.describe() if group.prunable else group.reason
        own = _quoted("group " + group.name)
        lines.append(
            f"  {own} [shape=ellipse, style=filled, {look}, label={_quoted(label)}, "
            f"tooltip={_quoted(tip)}];"
        )
        lines.extend(f"  {_quoted('layer ' + module)} -> {own};" for module in group.producers)
        lines.extend(f"  {own} -> {_quoted('layer ' + module)};" for module in group.consumers)
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
