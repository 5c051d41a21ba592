"""Runs a pruned weightless copy and compares it with what the graph predicts, node by node.

A reshape with a size written into the code, a branch on a channel count or a scale computed from
one would make the smaller model fail or, worse, compute something else. So the copy must call the
same operators with the same constants, and every result must have the predicted shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from infoslice.graph.capture import Capture, capture
from infoslice.graph.channel_graph import ChannelGraph, Signature
from infoslice.graph.cuts import axis_cuts, new_shapes, set_sizes, size_cuts
from infoslice.graph.dims import Atom, size
from infoslice.graph.recording import (
    Node,
    argument,
    call_site,
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
        pruned = capture(shell, graph.inputs)
    except TraceError as error:
        return str(error.__cause__ or error).strip().partition("\n")[0]
    return _difference(graph.signature, pruned, kept)


def failing_groups(
    graph: ChannelGraph, model: nn.Module, keep: Mapping[str, Tensor]
) -> dict[str, str]:
    """Group name -> what goes wrong, for the groups in ``keep`` that cannot be cut like this.

    All groups are tried at once and halved where that fails, so that a healthy model costs one run.
    """
    failure = check_keep(graph, model, keep) if keep else None
    if failure is None:
        return {}
    names = list(keep)
    if len(names) == 1:
        return {names[0]: failure}
    half = len(names) // 2
    failing = failing_groups(graph, model, {name: keep[name] for name in names[:half]})
    failing |= failing_groups(graph, model, {name: keep[name] for name in names[half:]})
    # Fine alone, wrong together: none of them can be trusted.
    return failing or dict.fromkeys(names, failure)


def _difference(signature: Signature, pruned: Capture, kept: Mapping[Atom, int]) -> str | None:
    def predicted(node: Node) -> Shapes:
        return [tuple(size(d, kept) for d in dims) for dims in signature.dims.get(node, ())]

    nodes, given = _without_regrouping(signature.nodes, predicted)
    nodes_after, given_after = _without_regrouping(pruned.nodes, lambda n: tensor_shapes(n.value))
    for before, after in zip(nodes, nodes_after, strict=False):
        where = call_site(before)
        called = before.op == "call_function"
        if before.op != after.op or (called and before.target != after.target):
            return f"calls {call_site(after)} instead of {where}"
        if called or before.op == "output":
            old, new = _constants(before, given), _constants(after, given_after)
            if len(old) != len(new):
                return f"{where} has {len(new)} arguments instead of {len(old)}"
            for was, now in zip(old, new, strict=True):
                if repr(was) != repr(now):  # NaN is given as NaN
                    return f"{where} is given {now} instead of {was}"
        if before in signature.starts:
            start = argument(after, 2, "start") or 0
            expected_start = size(signature.starts[before], kept)
            if start not in (expected_start, expected_start - _sliced_length(after)):
                return f"{where} begins at {start} instead of {expected_start}"
        expected, got = predicted(before), tensor_shapes(after.value)
        if expected != got:
            return f"{where} gives shapes {got} instead of {expected}"
    if len(nodes) != len(nodes_after):
        return f"calls {len(nodes_after)} operators instead of {len(nodes)}"
    return None


def _without_regrouping(
    nodes: Sequence[Node], shapes: Callable[[Node], Shapes]
) -> tuple[list[Node], dict[Node, str]]:
    """The nodes that compute something, and what each node gives, in words.

    A tensor read in another row-major shape is that tensor: code may leave a regrouping out where
    it would change nothing (``repeat`` of one head, ``contiguous``).
    """
    left: list[Node] = []
    source: dict[Node, int] = {}
    given: dict[Node, str] = {}
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
        given[node] = f"the result of operator {source[node]} as {made[node]}"
    return left, given


def _sliced_length(node: Node) -> int:
    """Of the axis that a slice cuts, before."""
    shape = shape_of(node.args[0])
    return shape[int(argument(node, 1, "dim", 0)) % len(shape)]


def _constants(node: Node, given: Mapping[Node, str]) -> list[Any]:
    """The arguments that must not change: everything but sizes, tensors by position."""
    name = operator_name(node)
    result: list[Any] = []
    for label, value in _arguments(node):
        if (label == "groups" and "conv" in name) or label == "num_groups":
            continue  # a depthwise convolution has as many as channels
        if label in ("enable_gqa", "repeats"):
            continue  # the shapes say how many heads share keys and values
        if name in _CUTS and label in ("start", "end", "length", "split_size"):
            continue  # where pieces begin and end is compared with the prediction
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Node):
                result.append(given[leaf])
            elif not (name in _TOLD_SIZES and type(leaf) is int and value is not leaf):
                result.append(leaf)  # all but sizes within a list
    return result


def _arguments(node: Node) -> list[tuple[str, Any]]:
    """Names and values, with the defaults that the recording leaves out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [("", value) for value in (*node.args, *node.kwargs.values())]
    given = list(node.args)
    return [
        (a.name, given[i] if i < len(given) else node.kwargs.get(a.name, a.default_value))
        for i, a in enumerate(node.target._schema.arguments)
    ]
