"""Rules for operators with weights: convolutions, products, embeddings, normalisations, PReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infoslice.graph.dims import Atom, Dim, Prod, size
from infoslice.graph.recording import Node, argument, operator_name, shape_of
from infoslice.graph.rules_attention import product
from infoslice.graph.walk import MULTIPLIER, SPATIAL, Value, Walk, rule

__all__: list[str] = []


@rule("aten::conv1d", "aten::conv2d", "aten::conv3d")
def _conv(walk: Walk, node: Node) -> Value:
    return _convolution(walk, node, argument(node, 6, "groups", 1), transposed=False)


@rule("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d")
def _conv_transpose(walk: Walk, node: Node) -> Value:
    return _convolution(walk, node, argument(node, 6, "groups", 1), transposed=True)


@rule("aten::convolution", "aten::_convolution")
def _any_conv(walk: Walk, node: Node) -> Value:
    return _convolution(walk, node, node.args[8], transposed=bool(node.args[6]))


def _convolution(walk: Walk, node: Node, groups: Any, *, transposed: bool) -> Value:
    """Weight [C_out, C_in / groups, *kernel]; transposed: [C_in, C_out / groups, *kernel]."""
    x, weight = walk.tensor(argument(node, 0, "input")), walk.tensor(argument(node, 1, "weight"))
    bias = walk.value(argument(node, 2, "bias"))
    channel = len(x.dims) - (len(weight.dims) - 2) - 1  # 0 without a batch axis
    spatial = x.dims[channel + 1 :]
    walk.pin([*spatial, *weight.dims[2:]], SPATIAL)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    c_in = shape_of(argument(node, 0, "input"))[channel]
    out: Dim
    if not weight.sources:
        reason = f"{walk.where(node)} has a weight that is computed from the input"
        walk.pin([x.dims[channel], *weight.dims], reason)
        out = Atom(shape_of(node)[channel], reason)
    elif groups == 1:
        walk.unify(node, x.dims[channel], weight.dims[in_axis])
        walk.reads(node, x.dims[channel])
        walk.use(node, weight, in_axis, "in")
        walk.use(node, weight, out_axis, "out")
        walk.size_attribute(node, "in_channels", x.dims[channel])
        out = weight.dims[out_axis]
    elif groups == c_in:
        # Depthwise: output channel c * m + j is made from input channel c alone.
        multiplier = shape_of(node)[channel] // groups
        if transposed:
            walk.pin([weight.dims[1]], MULTIPLIER)
            walk.unify(node, weight.dims[0], x.dims[channel])
            out = Prod((x.dims[channel], weight.dims[1]))
        else:
            walk.pin([weight.dims[1]], SPATIAL)
            out = Prod((x.dims[channel], Atom(multiplier, MULTIPLIER)))
            walk.unify(node, weight.dims[0], out)
        walk.use(node, weight, 0, "follow")
        walk.size_attribute(node, "in_channels", x.dims[channel])
        walk.size_attribute(node, "groups", x.dims[channel])
        walk.guess_sizes(node, ("channels",), x.dims[channel])
    else:
        # In every group the same inputs make the same outputs; whole groups may go too.
        c_out = shape_of(node)[channel] // groups
        of_in, number = Atom(c_in // groups), Atom(groups)
        walk.unify(node, x.dims[channel], Prod((number, of_in)))
        if transposed:
            walk.unify(node, weight.dims[0], x.dims[channel])
            out = Prod((number, weight.dims[1]))
        else:
            walk.unify(node, weight.dims[1], of_in)
            out = Prod((number, Atom(c_out)))
            walk.unify(node, weight.dims[0], out)
        walk.use(node, weight, in_axis, "in")
        walk.use(node, weight, out_axis, "out")
        walk.size_attribute(node, "in_channels", x.dims[channel])
        walk.size_attribute(node, "groups", number)
    walk.size_attribute(node, "out_channels", out)
    if bias is not None:
        walk.unify(node, bias.dims[0], out)
        walk.use(node, bias, 0, "follow" if groups == c_in != 1 else "out")
    sizes = shape_of(node)[channel + 1 :]
    return Value((*x.dims[:channel], out, *(Atom(n, SPATIAL) for n in sizes)))


@rule("aten::linear")
def _linear(walk: Walk, node: Node) -> Value:
    weight = walk.tensor(argument(node, 1, "weight"))
    x = walk.tensor(argument(node, 0, "input"))
    result = _contract(walk, node, x, weight, transpose=True)
    return _add_bias(walk, node, result, walk.value(argument(node, 2, "bias")))


@rule("aten::matmul", "aten::mm")
def _matmul(walk: Walk, node: Node) -> Value:
    x, y = walk.tensor(node.args[0]), walk.tensor(node.args[1])
    if len(y.dims) != 2 or not y.sources:
        return product(walk, node, x, y)
    return _contract(walk, node, x, y, transpose=False)


@rule("aten::addmm")
def _addmm(walk: Walk, node: Node) -> Value:
    x, y = walk.tensor(node.args[1]), walk.tensor(node.args[2])
    result = _contract(walk, node, x, y, transpose=False)
    walk.size_attribute(node, "nf", result.dims[-1])  # Conv1D of transformers
    return _add_bias(walk, node, result, walk.tensor(node.args[0]))


def _contract(walk: Walk, node: Node, x: Value, y: Value, *, transpose: bool) -> Value:
    """The product of x [..., in] and weight y, [out, in] if ``transpose``, else [in, out]."""
    if not y.sources or len(y.dims) != 2:
        reason = f"{walk.where(node)} has a weight that is computed from the input"
        walk.pin([*x.dims, *y.dims], reason)
        return Value(tuple(Atom(n, reason) for n in shape_of(node)))
    out_axis, in_axis = (0, 1) if transpose else (1, 0)
    walk.unify(node, x.dims[-1], y.dims[in_axis])
    walk.reads(node, x.dims[-1])
    walk.use(node, y, in_axis, "in")
    walk.use(node, y, out_axis, "out")
    walk.size_attribute(node, "in_features", x.dims[-1])
    walk.size_attribute(node, "out_features", y.dims[out_axis])
    return Value((*x.dims[:-1], y.dims[out_axis]))


def _add_bias(walk: Walk, node: Node, result: Value, bias: Value | None) -> Value:
    if bias is not None:
        if len(bias.dims) != 1:
            reason = f"{walk.where(node)} has a bias of several axes"
            walk.pin([*bias.dims, *result.dims], reason)
        else:
            walk.unify(node, bias.dims[0], result.dims[-1])
            walk.use(node, bias, 0, "out")
    return result


@rule("aten::embedding")
def _embedding(walk: Walk, node: Node) -> Value:
    weight, index = walk.tensor(node.args[0]), walk.tensor(node.args[1])
    walk.pin([weight.dims[0]], f"{walk.where(node)} looks its rows up by index")
    walk.use(node, weight, 1, "out")
    walk.size_attribute(node, "embedding_dim", weight.dims[1])
    return Value((*index.dims, weight.dims[1]))


# ---- normalisations


def _per_channel(
    walk: Walk, node: Node, x: Value, channel: int, others: Sequence[Any], attribute: str
) -> None:
    """Weights, biases and running statistics [C] go with axis ``channel`` of x."""
    for argument_ in others:
        value = walk.value(argument_)
        if value is None:
            continue
        if len(value.dims) != 1:
            walk.pin([*value.dims, x.dims[channel]], f"{walk.where(node)} has an odd weight")
        else:
            walk.unify(node, value.dims[0], x.dims[channel])
            walk.use(node, value, 0, "follow")
    if attribute:
        walk.size_attribute(node, attribute, x.dims[channel])


@rule("aten::batch_norm", "aten::cudnn_batch_norm", "aten::instance_norm")
def _batch_norm(walk: Walk, node: Node) -> Value | tuple[Value | None, ...]:
    x = walk.tensor(node.args[0])
    _per_channel(walk, node, x, 1, [argument(node, i, "") for i in range(1, 5)], "num_features")
    if argument(node, 5, ""):  # by the statistics of the input itself
        per_sample = operator_name(node) == "aten::instance_norm"
        for dim in (*(() if per_sample else x.dims[:1]), *x.dims[2:]):
            walk.renormalised.append((walk.where(node), dim))
    return _same(x, node)


@rule("aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training")
def _native_batch_norm(walk: Walk, node: Node) -> tuple[Value | None, ...]:
    x = walk.tensor(node.args[0])
    _per_channel(walk, node, x, 1, node.args[1:5], "num_features")
    # The saved statistics are empty or per channel; nothing in a forward reads them.
    saved = [Value(tuple(Atom(n, SPATIAL) for n in v.shape)) for v in node.value[1:]]
    return (Value(x.dims), *saved)


@rule("aten::layer_norm", "aten::rms_norm")
def _layer_norm(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    count = len(argument(node, 1, "normalized_shape"))
    if count != 1:
        walk.pin(x.dims[-count:], f"{walk.where(node)} normalises over several axes")
        for value in walk.inputs(node)[1:]:
            walk.pin(value.dims, f"{walk.where(node)} normalises over several axes")
        return Value(x.dims)
    others = [argument(node, 2, "weight"), argument(node, 3, "bias")]
    _per_channel(walk, node, x, len(x.dims) - 1, others, "")
    walk.size_attribute(node, "normalized_shape", x.dims[-1], position=0)
    walk.renormalised.append((walk.where(node), x.dims[-1]))
    return Value(x.dims)


@rule("aten::_weight_norm")
def _weight_norm(walk: Walk, node: Node) -> Value:
    """v scaled to the norms g along one axis; the norm is taken over the others."""
    v, g, kept = walk.tensor(node.args[0]), walk.tensor(node.args[1]), argument(node, 2, "dim", 0)
    for axis, dim in enumerate(v.dims):
        if axis == kept:
            walk.unify(node, dim, g.dims[axis])
        else:
            walk.renormalised.append((walk.where(node), dim))
    return Value(v.dims)


@rule("aten::group_norm")
def _group_norm(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    others = [argument(node, 2, "weight"), argument(node, 3, "bias")]
    groups = argument(node, 1, "num_groups")
    walk.renormalised.extend((walk.where(node), dim) for dim in x.dims[2:])
    if groups == 1:
        walk.renormalised.append((walk.where(node), x.dims[1]))
    else:
        # Whole groups may go; within one, statistics are taken over all its channels.
        number, each = Atom(groups), Atom(size(x.dims[1]) // groups)
        walk.unify(node, x.dims[1], Prod((number, each)))
        walk.pin([each], f"{walk.where(node)} normalises groups of channels ({groups})")
        walk.size_attribute(node, "num_groups", number)
    _per_channel(walk, node, x, 1, others, "num_channels")
    return Value(x.dims)


@rule("aten::prelu", "aten::_prelu_kernel")
def _prelu(walk: Walk, node: Node) -> Value:
    x, weight = walk.tensor(node.args[0]), walk.tensor(node.args[1])
    if shape_of(node.args[1])[-1:] != (1,) and len(x.dims) > 1:
        _per_channel(walk, node, x, 1, [node.args[1]], "num_parameters")
    elif len(x.dims) < 2:
        walk.pin([*x.dims, *weight.dims], f"{walk.where(node)} without a batch axis")
    return Value(x.dims)


def _same(x: Value, node: Node) -> Value | tuple[Value | None, ...]:
    """``x`` itself, or x and untracked statistics where the operator returns a tuple."""
    val = node.value
    if not isinstance(val, (tuple, list)):
        return Value(x.dims)
    rest = [Value(tuple(Atom(n, SPATIAL) for n in item.shape)) for item in val[1:]]
    return (Value(x.dims), *rest)
