"""Normalisations written out by hand: ``x * rsqrt(mean(x ** 2) + eps)`` and its relatives.

A mean, a variance or a norm over channels is a *statistic*. Where every use of it is to shift or to
scale down the very channels it was taken over, it normalises them: after a cut it is taken over
those that are left, as a layer norm does. Any other use needs all channels, and they stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from infoslice.graph.dims import Dim, atoms, resolve, size
from infoslice.graph.recording import Node, operator_name
from infoslice.graph.walk import Value, Walk

__all__ = ["statistic"]

_MEANS = frozenset(("mean", "var_mean", "std_mean"))
_STATISTICS = _MEANS | frozenset(("var", "std", "norm", "linalg_vector_norm"))
_CASTS = frozenset(("to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias"))
_KEPT_FROM_ZERO = frozenset(("add", "clamp", "clamp_min", "maximum", "mul", "div", "sqrt"))
_INVERTED = frozenset(("rsqrt", "reciprocal"))
_WIDENED = frozenset(("expand", "expand_as"))


class _Use(NamedTuple):
    """``user`` reads ``made``, which the statistic, one ``value`` per position, has become."""

    value: Node
    made: Node
    user: Node
    plain: bool  # a mean as it was taken
    inverted: bool


def statistic(walk: Walk, node: Node, dims: Sequence[Dim]) -> None:
    """``node`` reduces ``dims``: at the end of the walk they are renormalised, or pinned."""
    dims = [dim for dim in dims if size(dim) != 1]

    def settle() -> None:
        uses = list(_uses(node)) if _is_statistic(node) else []
        if uses and all(_normalises(walk, use, dims) for use in uses):
            place = f"'{node.module}'" if node.module else "the model's own forward"
            walk.renormalised.extend((f"normalisation in {place}", dim) for dim in dims)
        else:
            walk.pin(dims, f"{walk.where(node)} reduces the axis")

    walk.at_end.append(settle)


def _is_statistic(node: Node) -> bool:
    return _base(node) in _STATISTICS or (_base(node) == "sum" and _is_square(node.args[0]))


def _is_square(node: object) -> bool:
    if not isinstance(node, Node):
        return False
    if _base(node) in _CASTS:
        return _is_square(node.args[0])
    if _base(node) == "pow":
        return bool(node.args[1] == 2)
    return _base(node) == "square" or (_base(node) == "mul" and node.args[0] is node.args[1])


def _uses(node: Node) -> Iterator[_Use]:
    """What reads a statistic once it was kept from zero, inverted, cast, widened."""
    pending = [(node, node, _base(node) == "mean", False)]
    while pending:
        value, made, plain, inverted = pending.pop()
        for user in made.users:
            name = _base(user)
            number = len(user.inputs) == 1 and user.args[0] is made
            if name == "getitem":
                mean_too = _base(made) in _MEANS and user.args[1] == 1
                pending.append((user, user, mean_too, False))
            elif name in _CASTS and user.args[0] is made:
                pending.append((user if value is made else value, user, plain, inverted))
            elif name == "unsqueeze" and value is made:
                pending.append((user, user, plain, inverted))
            elif name in _WIDENED and user.args[0] is made:
                pending.append((value, user, plain, inverted))
            elif number and name in _KEPT_FROM_ZERO and value is made:
                pending.append((user, user, False, inverted))
            elif number and (name in _INVERTED or _is_inverse(user)) and value is made:
                pending.append((user, user, False, not inverted))
            elif number and name == "pow" and value is made:
                pending.append((user, user, False, inverted))
            else:
                yield _Use(value, made, user, plain, inverted)


def _is_inverse(node: Node) -> bool:
    power = node.args[1] if _base(node) == "pow" else 0
    return isinstance(power, (int, float)) and power < 0


def _normalises(walk: Walk, use: _Use, dims: Sequence[Dim]) -> bool:
    """The statistic is subtracted from, or divides, a tensor on whose axes ``dims`` lie."""
    name = _base(use.user)
    others = [node for node in use.user.inputs if node is not use.made]
    if len(others) != 1:
        return False
    first = use.user.args[0] is not use.made
    shifts = name == "sub" and use.plain and first
    scales = name == "mul" if use.inverted else name in ("div", "true_divide") and first
    value, x = walk.value(use.value), walk.value(others[0])
    if not (shifts or scales) or value is None or x is None:
        return False
    return all(_lies_across(dim, x, value) for dim in dims)


def _lies_across(dim: Dim, x: Value, value: Value) -> bool:
    """Along some axis of ``x`` for all of which there is one value, the channels are ``dim``."""
    for back in range(1, len(x.dims) + 1):
        one = back > len(value.dims) or size(value.dims[-back]) == 1
        if one and _same(x.dims[-back], dim):
            return True
    return False


def _same(first: Dim, second: Dim) -> bool:
    first, second = resolve(first), resolve(second)
    return type(first) is type(second) and list(atoms(first)) == list(atoms(second))


def _base(node: Node) -> str:
    return operator_name(node).removeprefix("aten::").rstrip("_")
