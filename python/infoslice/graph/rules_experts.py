"""Rules for mixtures of experts: a router scores them, the weights of the best are looked up.

Positions along an axis that ``topk`` yields *point* into that axis. As long as they serve to look
up other tensors, what they point into may be cut: experts go with their scores, as if those were
minus infinity. Positions read by anything else need all of them where they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from infoslice.graph.dims import Atom, size
from infoslice.graph.recording import Node, argument, operator_name, shape_of
from infoslice.graph.walk import EXPERTS, Result, Value, Walk, rule

__all__: list[str] = []

_CASTS = frozenset(("aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous"))
_VIEWS = frozenset(("aten::view", "aten::reshape", "aten::flatten", "aten::unsqueeze"))


def _readers(node: Node, passing: frozenset[str]) -> Iterator[tuple[Node, Node]]:
    """What reads ``node``, and in which form, beyond operators that pass it on as it is."""
    for user in node.users:
        if operator_name(user) in passing and user.args[0] is node:
            yield from _readers(user, passing)
        else:
            yield node, user


@rule("aten::softmax", "aten::_softmax")
def _softmax(walk: Walk, node: Node) -> Value:
    """Scores that only serve to choose the largest are normalised over those that are left."""
    x, axis = walk.tensor(node.args[0]), argument(node, 1, "dim")
    dim = x.dims[axis]
    readers = list(_readers(node, _CASTS))
    if readers and all(_chooses(user, axis % len(x.dims)) for _, user in readers):
        walk.renormalised.append((walk.where(node), dim))
    else:
        walk.pin([dim], f"{walk.where(node)} mixes the entries of the axis")
    return Value(x.dims)


def _chooses(node: Node, axis: int) -> bool:
    if operator_name(node) != "aten::topk":
        return False
    return bool(argument(node, 2, "dim", -1) % len(shape_of(node.args[0])) == axis)


@rule("aten::topk")
def _topk(walk: Walk, node: Node) -> Result:
    x, axis = walk.tensor(node.args[0]), argument(node, 2, "dim", -1) % len(shape_of(node.args[0]))
    reason = f"{walk.where(node)} chooses entries of the axis"
    _, positions = (next(u for u in node.users if u.args[1] == i) for i in range(2))
    readers = list(_readers(positions, _CASTS | _VIEWS))
    if not readers or not all(_looks_up(made, user) for made, user in readers):
        walk.pin([x.dims[axis]], reason)
    walk.renormalised.append((walk.where(node), x.dims[axis]))
    walk.baked = True
    walk.guess_sizes(node, EXPERTS, x.dims[axis])
    chosen = Atom(argument(node, 1, "k"), reason)
    dims = (*x.dims[:axis], chosen, *x.dims[axis + 1 :])
    return Value(dims), Value(dims, points=x.dims[axis])


def _looks_up(made: Node, user: Node) -> bool:
    """``user`` takes the positions ``made`` for what they are."""
    name = operator_name(user)
    if name == "aten::index":
        return made is not user.args[0]
    if name == "aten::sort":
        ordered = [item for item in user.users if item.args[1] == 0]
        return all(
            _looks_up(*reader) for item in ordered for reader in _readers(item, _CASTS | _VIEWS)
        )
    return name == "aten::histc"


@rule("aten::sort")
def _sort(walk: Walk, node: Node) -> Result:
    x, axis = walk.tensor(node.args[0]), argument(node, 1, "dim", -1)
    reason = f"{walk.where(node)} mixes the entries of the axis"
    walk.pin([x.dims[axis]], reason)
    return Value(x.dims, points=x.points), Value(x.dims)


@rule("aten::histc")
def _histc(walk: Walk, node: Node) -> Result:
    """How often each expert was chosen."""
    x, bins = walk.tensor(node.args[0]), argument(node, 1, "bins", 100)
    if x.points is None or size(x.points) != bins:
        return walk.unknown(node)
    if argument(node, 2, "min", 0) != 0 or argument(node, 3, "max", 0) != bins - 1:
        return walk.unknown(node)
    walk.baked = True
    walk.guess_sizes(node, EXPERTS, x.points)
    return Value((x.points,))


@rule("aten::cumsum")
def _cumsum(walk: Walk, node: Node) -> Value:
    """Counts of rows become the places where the rows of each expert end."""
    x, axis = walk.tensor(node.args[0]), argument(node, 1, "dim")
    if not all(operator_name(user) == "aten::_grouped_mm" for user in node.users):
        walk.pin([x.dims[axis]], f"{walk.where(node)} mixes the entries of the axis")
    return Value(x.dims)


@rule("aten::_grouped_mm")
def _grouped_mm(walk: Walk, node: Node) -> Result:
    """Rows of x [S, K] in consecutive pieces, one for each matrix of weight [E, K, N]."""
    x, weight = walk.tensor(node.args[0]), walk.tensor(node.args[1])
    ends = walk.value(argument(node, 2, "offs"))
    if len(x.dims) != 2 or len(weight.dims) != 3 or weight.tensor is None or ends is None:
        return walk.unknown(node)
    walk.baked = True
    walk.unify(node, ends.dims[0], weight.dims[0])
    walk.unify(node, x.dims[-1], weight.dims[1])
    walk.use(node, weight, 0, "in")
    walk.use(node, weight, 1, "in")
    walk.use(node, weight, 2, "out")
    for dim in (x.dims[-1], weight.dims[2]):
        walk.steps.append((dim, 16 // node.value.dtype.itemsize))
    return Value((x.dims[0], weight.dims[2]))


@rule("aten::index")
def _index(walk: Walk, node: Node) -> Result:
    """Axes looked up by tensors, which stay whole: the axes of the index take their place.

    Of an index that points into an axis, the axis looked up is that axis.
    """
    x, index = walk.tensor(node.args[0]), list(node.args[1])
    places = [i for i, item in enumerate(index) if item is not None]
    looked_up = [walk.tensor(index[i]) for i in places]
    if any(node.args[1][i].value.dtype.itemsize == 1 for i in places):
        return walk.unknown(node)  # a mask
    reason = f"{walk.where(node)} looks the axis up by index"
    points = looked_up[0].points if len(places) == 1 else None
    for i, value in zip(places, looked_up, strict=True):
        walk.pin(value.dims, reason)
        if points is None:
            walk.pin([x.dims[i]], reason)
        else:
            walk.unify(node, x.dims[i], points)
            walk.guess_sizes(node, EXPERTS, points)
            walk.use(node, x, i, "in")
    rank = max(len(value.dims) for value in looked_up)
    # Indices side by side are replaced where they stand, others in front.
    together = places == list(range(places[0], places[-1] + 1))
    first = places[0] if together else 0
    made = tuple(Atom(n, reason) for n in shape_of(node)[first : first + rank])
    left = [i for i in range(len(x.dims)) if i not in places]
    before = [i for i in left if i < first] if together else []
    after = [i for i in left if i not in before]
    dims = (*(x.dims[i] for i in before), *made, *(x.dims[i] for i in after))
    if x.tensor is None or len(places) > 1:
        return Value(dims)
    # Rows of a weight are that weight still.
    rows = (x.axes[places[0]] for _ in made)
    axes = (*(x.axes[i] for i in before), *rows, *(x.axes[i] for i in after))
    return Value(dims, x.tensor, axes)


@rule("aten::gather", "aten::take_along_dim")
def _gather(walk: Walk, node: Node) -> Result:
    """One axis looked up entry by entry; along the others the index has the entries of x."""
    x, index = walk.tensor(node.args[0]), walk.tensor(argument(node, 2, "index"))
    axis = argument(node, 1, "dim") % max(len(x.dims), 1)
    reason = f"{walk.where(node)} looks the axis up by index"
    walk.pin([x.dims[axis], index.dims[axis]], reason)
    for i, (one, other) in enumerate(zip(x.dims, index.dims, strict=True)):
        if i != axis and size(one) != size(other):
            return walk.unknown(node)
        if i != axis:
            walk.unify(node, one, other)
    return Value(index.dims)
