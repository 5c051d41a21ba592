"""Runs a pruned weightless copy and compares it with what the graph predicts, node by node.

A reshape with a size written into the code, a branch on a channel count or a scale computed from
one would make the smaller model fail or, worse, compute something else. So the copy must call the
same operators with the same constants, and every result must have the predicted shape.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    if len(signature.nodes) != len(pruned.nodes):
        return f"calls {len(pruned.nodes)} operators instead of {len(signature.nodes)}"
    order = {node: i for i, node in enumerate(signature.nodes)}
    order_pruned = {node: i for i, node in enumerate(pruned.nodes)}
    for before, after in zip(signature.nodes, pruned.nodes, strict=True):
        where = call_site(before)
        called = before.op == "call_function"
        if before.op != after.op or (called and before.target != after.target):
            return f"calls {call_site(after)} instead of {where}"
        if called or before.op == "output":
            old, new = _constants(before, order), _constants(after, order_pruned)
            if len(old) != len(new):
                return f"{where} has {len(new)} arguments instead of {len(old)}"
            for was, now in zip(old, new, strict=True):
                if repr(was) != repr(now):  # NaN is given as NaN
                    return f"{where} is given {now} instead of {was}"
        if before in signature.starts:
            start = argument(after, 2, "start") or 0
            predicted = size(signature.starts[before], kept)
            if start not in (predicted, predicted - _sliced_length(after)):
                return f"{where} begins at {start} instead of {predicted}"
        expected = [tuple(size(d, kept) for d in dims) for dims in signature.dims.get(before, ())]
        got = tensor_shapes(after.value)
        if expected != got:
            return f"{where} gives shapes {got} instead of {expected}"
    return None


def _sliced_length(node: Node) -> int:
    """Of the axis that a slice cuts, before."""
    shape = shape_of(node.args[0])
    return shape[int(argument(node, 1, "dim", 0)) % len(shape)]


def _constants(node: Node, order: Mapping[Node, int]) -> list[Any]:
    """The arguments that must not change: everything but sizes, tensors by position."""
    name = operator_name(node)
    result: list[Any] = []
    for label, given in _arguments(node):
        if (label == "groups" and "conv" in name) or label == "num_groups":
            continue  # a depthwise convolution has as many as channels
        if name in _CUTS and label in ("start", "end", "length", "split_size"):
            continue  # where pieces begin and end is compared with the prediction
        for leaf in pytree.tree_leaves(given):
            if isinstance(leaf, Node):
                result.append(f"the result of operator {order[leaf]}")
            elif not (name in _TOLD_SIZES and type(leaf) is int and given is not leaf):
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
