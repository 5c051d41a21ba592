"""Runs a pruned weightless copy and compares it with what the graph predicts, node by node.

A reshape with a size written into the code, a branch on a channel count or a scale computed from
one would make the smaller model fail or, worse, compute something else. So the copy must call the
same operators with the same constants, and every result must have the predicted shape.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infoslice.graph.capture import Capture, capture
from infoslice.graph.channel_graph import ChannelGraph, Signature
from infoslice.graph.cuts import axis_cuts, new_shapes, set_sizes, size_cuts
from infoslice.graph.dims import Atom, Dim, size_left
from infoslice.graph.recording import (
    Node,
    argument,
    call_site,
    no_garbage_collection,
    operator_name,
    shape_of,
    tensor_shapes,
)
from infoslice.graph.shell import Shell, TraceError, build_shell

_CUTS = frozenset(
    "aten::" + name for name in ("slice", "narrow", "split", "split_with_sizes", "unsafe_split")
)

__all__ = ["check_keep", "failing_groups"]

Shapes = list[tuple[int, ...]]
Given = tuple[int, Shapes]  # the operator that gives it, and in which shapes

# Operators that give the entries of their first argument in the same order.
_REGROUPING = frozenset(
    "aten::" + name
    for name in (
        "view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten", "squeeze",
        "unsqueeze", "expand", "repeat_interleave", "contiguous",
    )
)  # fmt: skip

# Operators that are told the sizes of their results; the results are compared instead.
_TOLD_SIZES = frozenset(
    "aten::" + name
    for name in (
        "view", "reshape", "_unsafe_view", "view_copy", "unflatten", "expand", "broadcast_to",
        "layer_norm", "rms_norm", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full",
        "repeat", "tile", "empty", "new_empty",
    )
)  # fmt: skip


def check_keep(graph: ChannelGraph, model: nn.Module, keep: Mapping[str, Tensor]) -> str | None:
    """What differs from the prediction when ``model`` keeps only these channels; None if nothing.

    ``model`` may be a weightless copy itself; it is not changed.
    """
    shapes = {name: shape for name, (shape, _) in graph.tensors.items()}
    shell = build_shell(model, new_shapes(axis_cuts(graph.groups, keep, shapes), shapes))
    set_sizes(shell.module, size_cuts(graph.groups, keep, model))
    return _run(graph, shell, {graph.signature.atoms[n]: k.numel() for n, k in keep.items()})


def _run(graph: ChannelGraph, shell: Shell, kept: Mapping[Atom, int]) -> str | None:
    try:
        pruned = capture(shell, graph.inputs, graph.forward_fn)
    except TraceError as error:
        cause = error.__cause__ or error
        return str(cause).strip().partition("\n")[0] or f"raises {type(cause).__name__}"
    return _difference(graph.signature, pruned, kept)


@no_garbage_collection()
def failing_groups(
    graph: ChannelGraph, model: nn.Module, keep: Mapping[str, Tensor]
) -> dict[str, str]:
    """Group name -> what goes wrong, for the groups in ``keep`` that cannot be cut like this.

    All are tried at once, so that a healthy model costs one run. Where that fails they are halved,
    at first without telling the blocks of a network apart: what fails in the first block, the
    middle one and the last is left whole in all.
    """
    kinds: dict[str, list[str]] = {}
    for name in keep:
        kinds.setdefault(_NUMBER.sub(".#", name), []).append(name)

    def run(names: Iterable[str]) -> str | None:
        return check_keep(graph, model, {name: keep[name] for name in names})

    failing = _failing(run, list(kinds.values())) if keep else {}
    left = {name: kept for name, kept in keep.items() if name not in failing}
    return {**failing, **failing_groups(graph, model, left)} if failing else {}


_NUMBER = re.compile(r"\.\d+")


def _failing(run: Callable[[Iterable[str]], str | None], units: list[list[str]]) -> dict[str, str]:
    names = [name for unit in units for name in unit]
    failure = run(names)
    if failure is None:
        return {}
    if len(names) == 1:
        return {names[0]: failure}
    if len(units) == 1:
        samples = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
        found = {name: run([name]) for name in samples}
        if len(names) > len(samples) and all(found.values()):
            return {name: found.get(name) or failure for name in names}
        units = [[name] for name in names]
    half = len(units) // 2
    failing = _failing(run, units[:half]) | _failing(run, units[half:])
    # Fine alone, wrong together: none of them can be trusted.
    return failing or dict.fromkeys(names, failure)


def _difference(signature: Signature, pruned: Capture, kept: Mapping[Atom, int]) -> str | None:
    sizes: dict[Dim, int] = {}

    def predicted(node: Node) -> Shapes:
        dims = signature.dims.get(node, ())
        return [tuple(size_left(d, kept, sizes) for d in axes) for axes in dims]

    nodes, given = _without_regrouping(signature.nodes, predicted)
    nodes_after, given_after = _without_regrouping(pruned.nodes, lambda n: tensor_shapes(n.value))
    for before, after in zip(nodes, nodes_after, strict=False):
        called = before.op == "call_function"
        if before.op != after.op or (called and before.target != after.target):
            return f"calls {call_site(after)} instead of {call_site(before)}"
        if called or before.op == "output":
            told = _other_constant(before, after, given, given_after)
            if told is not None:
                return told
        if before in signature.starts:
            start = argument(after, 2, "start") or 0
            expected_start = size_left(signature.starts[before], kept, sizes)
            if start not in (expected_start, expected_start - _sliced_length(after)):
                return f"{call_site(before)} begins at {start} instead of {expected_start}"
        expected, got = given[before][1], given_after[after][1]
        if expected != got:
            return f"{call_site(before)} gives shapes {got} instead of {expected}"
    if len(nodes) != len(nodes_after):
        return f"calls {len(nodes_after)} operators instead of {len(nodes)}"
    return None


def _without_regrouping(
    nodes: Sequence[Node], shapes: Callable[[Node], Shapes]
) -> tuple[list[Node], dict[Node, Given]]:
    """The nodes that compute something, and what each node gives.

    A tensor read in another row-major shape is that tensor: code may leave a regrouping out where
    it would change nothing (``repeat`` of one head, ``contiguous``).
    """
    left: list[Node] = []
    source: dict[Node, int] = {}
    given: dict[Node, Given] = {}
    made: dict[Node, Shapes] = {}
    for node in nodes:
        made[node] = shapes(node)
        first = node.args[0] if node.args else None
        if (
            operator_name(node) in _REGROUPING
            and "dtype" not in str(node.target)
            and isinstance(first, Node)
            and list(map(math.prod, made[node])) == list(map(math.prod, made[first]))
        ):
            source[node] = source[first]
        else:
            source[node] = len(left)
            left.append(node)
        given[node] = (source[node], made[node])
    return left, given


def _sliced_length(node: Node) -> int:
    """Of the axis that a slice cuts, before."""
    shape = shape_of(node.args[0])
    return shape[int(argument(node, 1, "dim", 0)) % len(shape)]


def _other_constant(
    before: Node, after: Node, given: Mapping[Node, Given], given_after: Mapping[Node, Given]
) -> str | None:
    """The first argument that must not change and did: all but sizes; tensors by who gives them."""
    name = operator_name(before)
    was, now = _arguments(before), _arguments(after)
    if len(was) != len(now):
        return f"{call_site(before)} has {len(now)} arguments instead of {len(was)}"
    for (label, old), (_, new) in zip(was, now, strict=True):
        if (label == "groups" and "conv" in name) or label == "num_groups":
            continue  # a depthwise convolution has as many as channels
        if label in ("enable_gqa", "repeats", "output_size"):
            continue  # the shapes say how many heads share keys and values
        if name == "aten::histc" and label in ("bins", "max"):
            if label == "max" and new - argument(after, 1, "bins") != -1:
                return f"{call_site(before)} counts up to {new} of {argument(after, 1, 'bins')}"
            continue
        if name in _CUTS and label in ("start", "end", "length", "split_size", "split_sizes"):
            continue  # where pieces begin and end is compared with the prediction
        told = name in _TOLD_SIZES
        if not _same(_constants(old, given, told), _constants(new, given_after, told)):
            return f"{call_site(before)} is given {_shown(new)} instead of {_shown(old)}"
    return None


def _constants(value: Any, given: Mapping[Node, Given], told: bool) -> Any:
    """An argument with what gives it in place of every tensor, without sizes listed if ``told``."""
    if isinstance(value, Node):
        return given[value]
    if isinstance(value, (tuple, list)):
        left = [item for item in value if not (told and type(item) is int)]
        return [_constants(item, given, told) for item in left]
    if isinstance(value, torch.ScriptObject):
        return str(value)  # packed weights, copied with the model: told by their class
    return value


def _same(first: Any, second: Any) -> bool:
    """Equal and of the same type throughout: 1 is not True. NaN is given as NaN."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    return repr(first) == repr(second)


def _shown(value: Any) -> str:
    return f"the result of {call_site(value)}" if isinstance(value, Node) else str(value)


def _arguments(node: Node) -> list[tuple[str, Any]]:
    """Names and values, with the defaults that the recording leaves out."""
    given = node.args
    if not isinstance(node.target, torch._ops.OpOverload):
        return [("", value) for value in (*given, *node.kwargs.values())]
    return [
        (name, given[i] if i < len(given) else node.kwargs.get(name, default))
        for i, (name, default) in enumerate(_schema(node.target))
    ]


@functools.cache
def _schema(target: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the arguments of an operator."""
    return [(a.name, a.default_value) for a in target._schema.arguments]
