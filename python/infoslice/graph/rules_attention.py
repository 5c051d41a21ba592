"""Rules for products of activations: attention in its forms."""

from __future__ import annotations

from infoslice.graph.dims import Atom, Dim, Prod, size
from infoslice.graph.recording import Node, argument, shape_of
from infoslice.graph.rules_elementwise import broadcast
from infoslice.graph.walk import REPEATS, Result, Role, Value, Walk, rule

__all__ = ["product"]


def product(walk: Walk, node: Node, x: Value, y: Value) -> Value:
    """x [..., n, k] times y [..., k, m]; a vector stands for a matrix of one row or column.

    The axes in front are the same in both. What is summed over is read by the factor that is a
    weight; if both are computed it stays whole.
    """
    inner, outer = (-2 if len(y.dims) > 1 else -1), (-1 if len(y.dims) > 1 else None)
    if (x.tensor is None) == (y.tensor is None):
        walk.pin([x.dims[-1], y.dims[inner]], f"{walk.where(node)} sums over the axis")
    else:
        walk.unify(node, x.dims[-1], y.dims[inner])
        weight, read, written = (x, -1, -2) if y.tensor is None else (y, inner, outer)
        walk.use(node, weight, read, "in")
        if written is not None:
            walk.use(node, weight, written, "out")
    front = broadcast(walk, node, [Value(x.dims[:-2]), Value(y.dims[:-2])])
    rows = x.dims[-2:-1] if len(x.dims) > 1 else ()
    columns = y.dims[-1:] if len(y.dims) > 1 else ()
    return Value((*front, *rows, *columns))


@rule("aten::bmm")
def _bmm(walk: Walk, node: Node) -> Value:
    return product(walk, node, walk.tensor(node.args[0]), walk.tensor(node.args[1]))


@rule("aten::baddbmm")
def _baddbmm(walk: Walk, node: Node) -> Value:
    made = product(walk, node, walk.tensor(node.args[1]), walk.tensor(node.args[2]))
    return Value(broadcast(walk, node, [made, walk.tensor(node.args[0])]))


@rule("aten::scaled_dot_product_attention")
def _attention(walk: Walk, node: Node) -> Value:
    """q [..., heads, L, E], k [..., heads, S, E], v [..., heads, S, F], mask [..., L, S].

    Heads go together; E stays whole, since products are scaled by its length; F passes. With
    ``enable_gqa`` q has several heads for each of k and v: these are the outer factor.
    """
    q, k, v = (
        walk.tensor(argument(node, i, name)) for i, name in enumerate(("query", "key", "value"))
    )
    walk.pin([q.dims[-1], k.dims[-1]], f"{walk.where(node)} scales by the length of the axis")
    walk.unify(node, k.dims[-2], v.dims[-2])
    heads = broadcast(walk, node, [Value(k.dims[:-2]), Value(v.dims[:-2])])
    if (
        argument(node, 7, "enable_gqa", False)
        and len(heads)
        and size(heads[-1]) != size(q.dims[-3])
    ):
        repeats = Atom(size(q.dims[-3]) // size(heads[-1]))
        walk.guess_sizes(node, REPEATS, repeats)
        heads = (*heads[:-1], Prod((heads[-1], repeats)))
    front = [Value(q.dims[:-2]), Value(heads)]
    mask = walk.value(argument(node, 3, "attn_mask"))
    if mask is not None:
        front.append(Value(mask.dims[:-2]))
    return Value((*broadcast(walk, node, front), q.dims[-2], v.dims[-1]))


@rule("aten::repeat_interleave")
def _repeat_interleave(walk: Walk, node: Node) -> Result:
    """A number of repetitions: each index is followed by its copies."""
    x, times = walk.tensor(node.args[0]), node.args[1]
    axis = argument(node, 2, "dim")
    if not isinstance(times, int) or axis is None:
        return walk.unknown(node)
    walk.baked = True
    repeats = Atom(times)
    walk.guess_sizes(node, REPEATS, repeats)
    dims = list(x.dims)
    dims[axis] = Prod((dims[axis], repeats))
    return Value(tuple(dims))


@rule("aten::einsum")
def _einsum(walk: Walk, node: Node) -> Result:
    """Equal letters are equal axes; letters that the result lacks are summed over and stay whole.

    A factor that is a weight reads the axis summed over and writes the others.
    """
    equation, listed = str(node.args[0]).replace(" ", ""), node.args[1]
    left, arrow, right = equation.partition("->")
    terms, values = left.split(","), [walk.tensor(item) for item in listed]
    if not arrow or "." in equation or any(len(set(t)) != len(t) for t in terms):
        return walk.unknown(node)
    axes: dict[str, Dim] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, dim in zip(term, value.dims, strict=True):
            if letter in axes and size(axes[letter]) != size(dim):
                return walk.unknown(node)  # broadcast
            walk.unify(node, axes.setdefault(letter, dim), dim)
    weights = [i for i, value in enumerate(values) if value.tensor is not None]
    for i, (term, value) in enumerate(zip(terms, values, strict=True)):
        for axis, letter in enumerate(term):
            if letter not in right and len(weights) != 1:
                walk.pin([value.dims[axis]], f"{walk.where(node)} sums over the axis")
            elif i in weights and len(weights) == 1:
                shared = any(letter in other for j, other in enumerate(terms) if j != i)
                role: Role = "in" if letter not in right else "follow" if shared else "out"
                walk.use(node, value, axis, role)
    return Value(tuple(axes[letter] for letter in right))


@rule("aten::index_select")
def _index_select(walk: Walk, node: Node) -> Result:
    x, axis = walk.tensor(node.args[0]), int(node.args[1])
    axis %= len(x.dims)
    reason = f"{walk.where(node)} looks the axis up by index"
    walk.pin([x.dims[axis]], reason)
    return Value((*x.dims[:axis], Atom(shape_of(node)[axis], reason), *x.dims[axis + 1 :]))
