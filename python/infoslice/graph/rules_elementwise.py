"""Rules for operators that act on every entry alone, with broadcasting, and for factories."""

from __future__ import annotations

from infoslice.graph.dims import Atom, Dim, size
from infoslice.graph.recording import Node, shape_of
from infoslice.graph.walk import REPEATS, Result, Value, Walk, fresh, rule

__all__ = ["broadcast"]

_NAMES = """
abs neg sign square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos
atan sinh cosh tanh asinh acosh atanh erf erfc ceil floor round trunc frac sigmoid logit nan_to_num
add sub rsub mul div true_divide floor_divide remainder fmod pow float_power atan2 hypot maximum
minimum fmax fmin addcmul addcdiv lerp where clamp clip clamp_min clamp_max
eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not
isnan isinf isfinite masked_fill fill zero copy
relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid hardshrink
softshrink tanhshrink softplus softsign threshold log_sigmoid rrelu
dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout
clone contiguous detach detach_copy alias lift_fresh lift_fresh_copy to _to_copy type_as
zeros_like ones_like full_like empty_like
"""


@rule(*(f"aten::{name}" for name in _NAMES.split()))
def _pointwise(walk: Walk, node: Node) -> Result:
    values = walk.inputs(node)
    if _base(node) in ("type_as", "to"):
        values = values[:1]  # another tensor may be there for its dtype and device
    # A number may have been computed from a channel count (x * c**-0.5).
    walk.baked |= any(type(given) in (int, float) for given in node.args)
    dims = broadcast(walk, node, values)
    val = node.value
    if isinstance(val, (tuple, list)):
        return tuple(Value(dims) for _ in val)
    source = walk.value(node.args[0])
    if source is not None and _base(node) in _IDENTITY:
        return source  # still the weight itself
    return Value(dims)


@rule("aten::_assert_tensor_metadata")
def _assertion(walk: Walk, node: Node) -> None:
    """Recorded beside a change of dtype; yields nothing and couples nothing."""


# Operators whose result is the argument, entry by entry: a weight is still that weight.
_IDENTITY = frozenset(
    ("clone", "contiguous", "detach", "alias", "lift_fresh", "to", "_to_copy", "type_as")
)


def _base(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def broadcast(walk: Walk, node: Node, values: list[Value]) -> tuple[Dim, ...]:
    """Axes aligned from the right; an axis of length 1 follows the others and binds nothing."""
    rank = max((len(value.dims) for value in values), default=0)
    out: list[Dim] = []
    for position in range(-rank, 0):
        present = [v.dims[position] for v in values if len(v.dims) >= -position]
        wide = [dim for dim in present if size(dim) != 1]
        for dim in wide[1:]:
            walk.unify(node, wide[0], dim)
        out.append(wide[0] if wide else Atom(1))
    return tuple(out)


@rule("aten::zeros", "aten::ones", "aten::full", "aten::new_zeros", "aten::new_ones",
      "aten::new_full", "aten::empty", "aten::new_empty")  # fmt: skip
def _constant(walk: Walk, node: Node) -> Result:
    """All entries are equal, so that any may go; whether the size follows is checked by a run.

    An empty tensor is written to in place afterwards, which says what its axes are.
    """
    walk.baked = True
    return fresh(node)


@rule("aten::arange")
def _arange(walk: Walk, node: Node) -> Result:
    return fresh(node, f"{walk.where(node)} numbers the entries of the axis")


@rule("aten::expand", "aten::broadcast_to", "aten::expand_as")
def _expand(walk: Walk, node: Node) -> Value:
    x, shape = walk.tensor(node.args[0]), shape_of(node)
    walk.baked = True
    out: list[Dim] = [Atom(n) for n in shape[: len(shape) - len(x.dims)]]
    for dim, length in zip(x.dims, shape[len(shape) - len(x.dims) :], strict=True):
        if size(dim) != length:
            dim = Atom(length)
            walk.guess_sizes(node, REPEATS, dim)
        out.append(dim)
    return Value(tuple(out))
