"""Rules for operators that rearrange, join, cut or fold axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from infoslice.graph.dims import (
    Atom,
    Dim,
    Prod,
    Sum,
    atoms,
    parts,
    product,
    resolve,
    size,
    split_atom,
    unify,
)
from infoslice.graph.recording import Node, argument, operator_name, shape_of, tensor_shapes
from infoslice.graph.walk import (
    CONFIG,
    HEADS,
    PIECES,
    SECTIONS,
    SHAPES,
    SPATIAL,
    WIDTHS,
    Result,
    Value,
    Walk,
    fresh,
    rule,
)

__all__ = ["listed_axes"]


def listed_axes(argument_: Any, rank: int) -> list[int]:
    """Axis numbers, non-negative; None or an empty list means all of them."""
    if argument_ is None or argument_ == []:
        return list(range(rank))
    listed = argument_ if isinstance(argument_, (list, tuple)) else [argument_]
    return [int(axis) % max(rank, 1) for axis in listed]


# ---- order of axes


def _reorder(x: Value, order: Sequence[int]) -> Value:
    axes = tuple(x.axes[i] for i in order) if x.tensor is not None else ()
    return Value(tuple(x.dims[i] for i in order), x.tensor, axes)


@rule("aten::permute")
def _permute(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    return _reorder(x, listed_axes(argument(node, 1, "dims"), len(x.dims)))


@rule("aten::t", "aten::numpy_T", "aten::mT", "aten::adjoint", "aten::transpose", "aten::swapaxes",
      "aten::swapdims")  # fmt: skip
def _transpose(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    order = list(range(len(x.dims)))
    name = operator_name(node).rstrip("_")
    if name == "aten::numpy_T":
        order.reverse()
    elif name in ("aten::mT", "aten::adjoint") or (name == "aten::t" and len(order) == 2):
        order[-2:] = order[:-3:-1]
    elif name != "aten::t":
        i, j = listed_axes([argument(node, 1, "dim0"), argument(node, 2, "dim1")], len(order))
        order[i], order[j] = order[j], order[i]
    return _reorder(x, order)


@rule("aten::movedim", "aten::moveaxis")
def _movedim(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    rank = len(x.dims)
    source = listed_axes(argument(node, 1, "source"), rank)
    target = listed_axes(argument(node, 2, "destination"), rank)
    place = dict(zip(target, source, strict=True))
    others = iter(i for i in range(rank) if i not in source)
    return _reorder(x, [place[i] if i in place else next(others) for i in range(rank)])


# ---- folding


_TOLD_NO_SIZE = ("aten::flatten", "aten::squeeze", "aten::unsqueeze", "aten::view_as",
                 "aten::reshape_as")  # fmt: skip


@rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::view_copy", "aten::view_as",
      "aten::reshape_as", "aten::flatten", "aten::unflatten", "aten::squeeze",
      "aten::unsqueeze")  # fmt: skip
def _view(walk: Walk, node: Node) -> Result:
    """Row-major regrouping: the factors of the input, outermost first, are dealt out again."""
    x = walk.tensor(node.args[0])
    if "dtype" in str(node.target) or 0 in shape_of(node):
        return walk.unknown(node)
    # Sizes that are written into the code rather than taken from the input break after a cut.
    walk.baked |= operator_name(node) not in _TOLD_NO_SIZE
    out: list[Dim] = []
    for dims, lengths in _stretches(x.dims, shape_of(node)):
        dealt = _deal([factor for dim in dims for factor in _factors(dim)], lengths)
        if dealt is None:
            walk.pin(dims, f"{walk.where(node)} regroups axes across channels")
            reason = next(atom.reason for dim in dims for atom in atoms(dim))
            dealt = [Atom(length, reason) for length in lengths]
        out += dealt
    width = walk.first_read.get(node.module)
    free = [i for i, dim in enumerate(out) if any(atom.reason is None for atom in atoms(dim))]
    for i, dim in enumerate(out):
        if i < len(out) - 1:
            for part in dict.fromkeys((dim, *_factors(dim))):
                walk.guess_sizes(node, HEADS, part)
        if i == len(out) - 1 or [i] == free[-1:]:
            walk.guess_sizes(node, WIDTHS, dim)
        walk.guess_sizes(node, SHAPES, dim, i)
        # Another method than forward may have been called of the module that holds the weight.
        for tensor in x.sources or ():
            walk.guess_sizes(node, SHAPES, dim, i, tensor.rpartition(".")[0])
        # Code may take the width of all heads from that of what the module reads.
        if width is not None and size(dim) == size(width):
            walk.ties.append((width, dim))
    long = [(axis, size(dim)) for axis, dim in zip(x.axes, x.dims, strict=False) if size(dim) > 1]
    if x.tensor is not None and [n for _, n in long] == [n for n in shape_of(node) if n > 1]:
        # A weight whose axes of length 1 come and go is that weight.
        left = iter(axis for axis, _ in long)
        axes = tuple(next(left) if n > 1 else None for n in shape_of(node))
        return Value(tuple(out), x.tensor, axes)
    return Value(tuple(out), points=x.points)


def _stretches(dims: Sequence[Dim], shape: Sequence[int]) -> Iterator[tuple[list[Dim], list[int]]]:
    """The shortest runs of axes, before and after, that hold the same entries."""
    before, after = list(dims), list(shape)
    while before or after:
        taken, lengths = before[:1], after[:1]
        del before[:1], after[:1]
        while (have := math.prod(map(size, taken))) != (want := math.prod(lengths)) or (
            not (before and after) and (before or after)
        ):
            if after and (have > want or not before):
                lengths.append(after.pop(0))
            else:
                taken.append(before.pop(0))
        yield taken, lengths


def _deal(factors: list[Dim], shape: Sequence[int]) -> list[Dim] | None:
    """The factors, outermost first, dealt out to axes of these lengths; atoms are split for it."""
    factors = [factor for factor in factors if size(factor) != 1]
    out: list[Dim] = []
    for length in shape:
        taken: list[Dim] = []
        missing = length
        while missing > 1:
            factor = resolve(factors.pop(0)) if factors else Atom(1)
            have = size(factor)
            if isinstance(factor, Sum) and have % missing == 0 and have > missing:
                nested = _like_parts(factor, missing)
                if nested is None:
                    return None
                factors[:0] = nested.factors
                continue
            if missing % have == 0 and have > 1:
                taken.append(factor)
                missing //= have
            elif have > 1 and have % missing == 0 and isinstance(factor, Atom):
                outer, inner = split_atom(factor, (missing, have // missing), nested=True)
                taken.append(outer)
                factors.insert(0, inner)
                missing = 1
            else:
                return None
        out.append(taken[0] if len(taken) == 1 else Prod(tuple(taken)) if taken else Atom(1))
    return out


@rule("aten::repeat", "aten::tile")
def _repeat(walk: Walk, node: Node) -> Result:
    x, shape = walk.tensor(node.args[0]), shape_of(node)
    walk.baked = True
    dims = [Atom(1)] * (len(shape) - len(x.dims)) + list(x.dims)
    reason = f"number of repetitions in {walk.where(node)}"
    return Value(
        tuple(
            dim if size(dim) == length else Prod((Atom(length // size(dim), reason), dim))
            for dim, length in zip(dims, shape, strict=True)
        )
    )


def _like_parts(dim: Sum, count: int) -> Prod | None:
    """Pieces of one length laid end to end as an axis of ``count`` of them: they are cut alike."""
    length = size(dim) // count
    pieces = parts(dim, (length,) * count)
    if pieces is None:
        return None
    reason = "concatenated pieces of different structure are taken apart alike"
    for piece in pieces[1:]:
        unify(pieces[0], piece, reason)
    return Prod((Atom(count, "number of pieces"), *_factors(pieces[0])))


def _factors(dim: Dim) -> tuple[Dim, ...]:
    dim = resolve(dim)
    return dim.factors if isinstance(dim, Prod) else (dim,)


def _factored(walk: Walk, node: Node, dim: Dim, sizes: tuple[int, ...]) -> list[Dim] | None:
    """``dim`` as factors of these sizes, outermost first; None where its structure forbids it."""
    dim = resolve(dim)
    out = _deal(list(_factors(dim)), sizes)
    if out is None:
        walk.pin([dim], f"{walk.where(node)} regroups axes across channels")
    return out


@rule("aten::channel_shuffle")
def _channel_shuffle(walk: Walk, node: Node) -> Result:
    """[g, C / g] becomes [C / g, g]."""
    x, groups = walk.tensor(node.args[0]), argument(node, 1, "groups")
    out = _factored(walk, node, x.dims[1], (groups, size(x.dims[1]) // groups))
    if out is None:
        return walk.unknown(node)
    walk.pin(out[:1], f"number of groups of {walk.where(node)}")
    return Value((x.dims[0], Prod((out[1], out[0])), *x.dims[2:]))


@rule("aten::pixel_shuffle")
def _pixel_shuffle(walk: Walk, node: Node) -> Result:
    """[C r r, H, W] becomes [C, H r, W r]."""
    x, r = walk.tensor(node.args[0]), argument(node, 1, "upscale_factor")
    out = _factored(walk, node, x.dims[-3], (size(x.dims[-3]) // (r * r), r * r))
    if out is None:
        return walk.unknown(node)
    walk.pin([*out[1:], *x.dims[-2:]], SPATIAL)
    return Value((*x.dims[:-3], out[0], *(Atom(n, SPATIAL) for n in shape_of(node)[-2:])))


@rule("aten::pixel_unshuffle")
def _pixel_unshuffle(walk: Walk, node: Node) -> Result:
    """[C, H r, W r] becomes [C r r, H, W]."""
    x, r = walk.tensor(node.args[0]), argument(node, 1, "downscale_factor")
    walk.pin(x.dims[-2:], SPATIAL)
    out = Prod((x.dims[-3], Atom(r * r, SPATIAL)))
    return Value((*x.dims[:-3], out, *(Atom(n, SPATIAL) for n in shape_of(node)[-2:])))


@rule("aten::im2col")
def _im2col(walk: Walk, node: Node) -> Result:
    """[N, C, H, W] becomes [N, C k, positions] for k places of the kernel."""
    x, made = walk.tensor(node.args[0]), shape_of(node)
    walk.pin(x.dims[-2:], SPATIAL)
    patches = Prod((x.dims[-3], Atom(made[-2] // size(x.dims[-3]), SPATIAL)))
    return Value((*x.dims[:-3], patches, Atom(made[-1], SPATIAL)))


@rule("aten::col2im")
def _col2im(walk: Walk, node: Node) -> Result:
    """[N, C k, positions] becomes [N, C, H, W]."""
    x, made = walk.tensor(node.args[0]), shape_of(node)
    out = _factored(walk, node, x.dims[-2], (made[-3], size(x.dims[-2]) // made[-3]))
    if out is None:
        return walk.unknown(node)
    walk.pin([out[1], x.dims[-1]], SPATIAL)
    return Value((*x.dims[:-2], out[0], *(Atom(n, SPATIAL) for n in made[-2:])))


# ---- joining


@rule("aten::cat", "aten::concat", "aten::concatenate")
def _cat(walk: Walk, node: Node) -> Result:
    values = [walk.tensor(item) for item in node.args[0]]
    rank = len(shape_of(node))
    # An empty vector joins tensors of any rank and adds nothing: a cache begins as one.
    values = [value for value in values if list(map(size, value.dims)) != [0] or rank == 1]
    axis = listed_axes(argument(node, 1, "dim", 0), rank)[0]
    for value in values[1:]:
        for i in range(rank):
            if i != axis:
                walk.unify(node, values[0].dims[i], value.dims[i])
    dims = list(values[0].dims)
    dims[axis] = Sum(tuple(value.dims[axis] for value in values))
    return Value(tuple(dims))


@rule("aten::stack")
def _stack(walk: Walk, node: Node) -> Result:
    values = [walk.tensor(item) for item in node.args[0]]
    rank = len(shape_of(node))
    axis = listed_axes(argument(node, 1, "dim", 0), rank)[0]
    for value in values[1:]:
        for first, other in zip(values[0].dims, value.dims, strict=True):
            walk.unify(node, first, other)
    dims = list(values[0].dims)
    dims.insert(axis, Atom(len(values), f"{walk.where(node)} makes an axis of its arguments"))
    return Value(tuple(dims))


@rule("aten::pad", "aten::constant_pad_nd", "aten::reflection_pad1d", "aten::reflection_pad2d",
      "aten::reflection_pad3d", "aten::replication_pad1d", "aten::replication_pad2d",
      "aten::replication_pad3d")  # fmt: skip
def _pad(walk: Walk, node: Node) -> Value:
    x, amounts = walk.tensor(node.args[0]), list(argument(node, 1, "pad"))
    dims, shape = list(x.dims), shape_of(node)
    for i in range(len(amounts) // 2):
        axis = len(dims) - 1 - i
        if amounts[2 * i] or amounts[2 * i + 1]:
            reason = f"{walk.where(node)} pads the axis"
            walk.pin([dims[axis]], reason)
            dims[axis] = Atom(shape[axis], reason)
    return Value(tuple(dims))


# ---- cutting: into pieces laid end to end where the structure allows it; else the axis stays whole


def _cut(walk: Walk, node: Node, x: Value, axis: int, *, drop: bool = False) -> Result:
    reason = f"{walk.where(node)} takes a part of the axis"
    walk.pin([x.dims[axis]], reason)
    result = fresh(node, reason)
    if isinstance(result, Value):
        return Value(_replaced(x.dims, axis, result.dims, drop))
    assert isinstance(result, tuple)
    return tuple(v and Value(_replaced(x.dims, axis, v.dims, drop)) for v in result)


def _replaced(
    dims: tuple[Dim, ...], axis: int, new: tuple[Dim, ...], drop: bool
) -> tuple[Dim, ...]:
    return (*dims[:axis], *(() if drop else (new[axis],)), *dims[axis + 1 :])


def _with(x: Value, axis: int, dim: Dim) -> Value:
    return Value((*x.dims[:axis], dim, *x.dims[axis + 1 :]))


@rule("aten::slice", "aten::narrow")
def _slice(walk: Walk, node: Node) -> Result:
    x = walk.tensor(node.args[0])
    axis = listed_axes(argument(node, 1, "dim", 0), len(x.dims))[0]
    length, made = size(x.dims[axis]), shape_of(node)[axis]
    start = argument(node, 2, "start") or 0
    start = max(start + length, 0) if start < 0 else min(start, length)
    stepped = operator_name(node) == "aten::slice" and argument(node, 4, "step", 1) != 1
    if made == length and not stepped:
        # ``x[:, 1:]`` slices axis 0 from 0 to the largest integer; ``x[:64]`` of 64 names a number.
        end = argument(node, 3, "end")
        if operator_name(node) == "aten::slice" and (end is None or end > 2**62):
            return x
    cut = None if stepped or not made else parts(x.dims[axis], (start, made, length - start - made))
    if cut is None:
        return _cut(walk, node, x, axis)
    walk.baked = True
    walk.starts[node] = cut[0]
    walk.at_end.append(functools.partial(_sizes_of_pieces, walk, node, cut[:2]))
    return _with(x, axis, cut[1])


def _sizes_of_pieces(walk: Walk, node: Node, pieces: Sequence[Dim]) -> None:
    """Where pieces begin may be told by the number of heads in them, or by their width."""
    for i, piece in enumerate(pieces):
        walk.guess_sizes(node, SECTIONS, piece, i)
        factors = _factors(piece)
        for count in range(1, len(factors)):
            walk.guess_sizes(node, (*HEADS, *CONFIG), product(factors[:count]))
        walk.guess_sizes(node, (*PIECES, *WIDTHS, *HEADS), piece)


@rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split",
      "aten::unsafe_split", "aten::unsafe_chunk")  # fmt: skip
def _split(walk: Walk, node: Node) -> Result:
    x = walk.tensor(node.args[0])
    axis = listed_axes(argument(node, 2, "dim", 0), len(x.dims))[0]
    lengths = [shape[axis] for shape in tensor_shapes(node.value)]
    pieces = parts(x.dims[axis], tuple(lengths)) if sum(lengths) == size(x.dims[axis]) else None
    if pieces is None:
        return _cut(walk, node, x, axis)
    walk.baked = True
    walk.at_end.append(functools.partial(_sizes_of_pieces, walk, node, pieces))
    walk.guess_sizes(node, (*PIECES, *WIDTHS), x.dims[axis])  # or what half of it is
    if not isinstance(argument(node, 1, "split_size"), (list, tuple)) and len(set(lengths)) == 1:
        for piece in pieces[1:]:  # pieces of one length stay of one length
            walk.unify(node, pieces[0], piece)
    return tuple(_with(x, axis, piece) for piece in pieces)


@rule("aten::select")
def _select(walk: Walk, node: Node) -> Result:
    x = walk.tensor(node.args[0])
    axis = listed_axes(argument(node, 1, "dim", 0), len(x.dims))[0]
    if node.users:
        walk.pin([x.dims[axis]], f"{walk.where(node)} takes a part of the axis")
    walk.baked = True  # taken for its shape alone: a smaller copy tells whether it still can be
    return Value(x.dims[:axis] + x.dims[axis + 1 :], x.tensor, x.axes[:axis] + x.axes[axis + 1 :])


@rule("aten::unbind")
def _unbind(walk: Walk, node: Node) -> Result:
    x = walk.tensor(node.args[0])
    axis = listed_axes(argument(node, 1, "dim", 0), len(x.dims))[0]
    return _cut(walk, node, x, axis, drop=True)


@rule("aten::flip")
def _flip(walk: Walk, node: Node) -> Value:
    x = walk.tensor(node.args[0])
    reason = f"{walk.where(node)} reverses the axis"
    dims = list(x.dims)
    for axis in listed_axes(argument(node, 1, "dims"), len(dims)):
        walk.pin([dims[axis]], reason)
    return Value(tuple(dims))
