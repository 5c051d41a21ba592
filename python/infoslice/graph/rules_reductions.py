"""Rules for operators that reduce axes, mix the entries along them, pool or resample them."""

from __future__ import annotations

import functools

from infoslice.graph.dims import Atom
from infoslice.graph.recording import Node, argument, operator_name
from infoslice.graph.rules_norms import statistic
from infoslice.graph.rules_shape import listed_axes
from infoslice.graph.walk import SPATIAL, Result, Value, Walk, rule

__all__: list[str] = []


# ---- reductions: the reduced axes stay whole unless they are normalised, the others pass


@rule("aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::max", "aten::min", "aten::prod",
      "aten::var", "aten::std", "aten::logsumexp", "aten::argmax", "aten::argmin", "aten::norm",
      "aten::linalg_vector_norm", "aten::var_mean", "aten::std_mean", "aten::any", "aten::all",
      "aten::median")  # fmt: skip
def _reduce(walk: Walk, node: Node) -> Result:
    """``max(x, y)`` of two tensors is entrywise and left to its own name, ``maximum``."""
    values = walk.inputs(node)
    position = 2 if operator_name(node) in ("aten::norm", "aten::linalg_vector_norm") else 1
    named = argument(node, position, "dim")
    if len(values) != 1 or isinstance(named, str):
        return walk.unknown(node)
    if isinstance(named, bool):  # std(x, unbiased): no axis named
        named = None
    x = values[0]
    rank = len(x.dims)
    reduced = listed_axes(named, rank)
    statistic(walk, node, [x.dims[axis] for axis in reduced])

    def left(shape: tuple[int, ...]) -> Value:
        if len(shape) == rank:
            return Value(tuple(Atom(1) if i in reduced else d for i, d in enumerate(x.dims)))
        return Value(tuple(d for i, d in enumerate(x.dims) if i not in reduced))

    val = node.value
    if isinstance(val, (tuple, list)):
        return tuple(left(tuple(item.shape)) for item in val)
    return left(tuple(val.shape))


@rule("aten::log_softmax", "aten::_log_softmax", "aten::cumprod", "aten::glu",
      "aten::roll")  # fmt: skip
def _along_axis(walk: Walk, node: Node) -> Result:
    """Operators that mix the entries along one axis, the last if none is named."""
    name = operator_name(node)
    x = walk.tensor(node.args[0])
    position = 2 if name == "aten::roll" else 1
    named = argument(node, position, "dims" if name == "aten::roll" else "dim")
    if not x.dims or isinstance(named, str):
        return walk.unknown(node)
    if named is None and name != "aten::roll":
        named = -1
    axes = listed_axes(named, len(x.dims))
    reason = f"{walk.where(node)} mixes the entries of the axis"
    walk.pin([x.dims[axis] for axis in axes], reason)

    def result(shape: tuple[int, ...]) -> Value:
        return Value(
            tuple(Atom(shape[i], reason) if i in axes else d for i, d in enumerate(x.dims))
        )

    val = node.value
    if isinstance(val, (tuple, list)):
        return tuple(result(tuple(item.shape)) for item in val)
    return result(tuple(val.shape))


# ---- pooling and resampling: trailing axes change, batch and channel axes pass


def _trailing(walk: Walk, node: Node, *, count: int) -> Result:
    x = walk.tensor(node.args[0])
    walk.pin(x.dims[-count:], SPATIAL)
    val = node.value
    items = val if isinstance(val, (tuple, list)) else (val,)
    made = tuple(
        Value((*x.dims[:-count], *(Atom(n, SPATIAL) for n in item.shape[-count:])))
        for item in items
    )
    return made if isinstance(val, (tuple, list)) else made[0]


def _register_trailing() -> None:
    for count in (1, 2, 3):
        names = [
            f"aten::{kind}{count}d"
            for kind in (
                "max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool",
                "adaptive_max_pool", "upsample_nearest_exact", "_upsample_nearest_exact",
                "upsample_nearest",
            )
        ] + [f"aten::max_pool{count}d_with_indices"]  # fmt: skip
        mode = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}[count]
        names.append(f"aten::{mode}")
        if count == 2:
            names += ["aten::upsample_bicubic2d", "aten::_upsample_bilinear2d_aa"]
        rule(*names)(functools.partial(_trailing, count=count))


_register_trailing()
