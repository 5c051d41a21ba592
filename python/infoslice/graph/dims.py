"""The algebra of axes: which indices of which axes are the same channel.

Every axis of every tensor in the traced graph is a *dimension*:

* an ``Atom``: ``size`` interchangeable indices, each of which could be removed on its own;
* a ``Sum``: dimensions laid end to end (a concatenation);
* a ``Prod``: dimensions nested row-major, outermost first (a flatten).

``unify(a, b)`` states that index i of one axis and index i of the other are the same thing, as an
elementwise addition demands. Atoms are bound by union-find, to another atom or to the structure
found on the other side: adding a convolution's output to a concatenation of 3 and 5 channels binds
its one atom of 8 to ``Sum(3, 5)``. Only identity binds: nothing is ever inferred from equal sizes.

``pin(d, reason)`` forbids removing anything from ``d``. Where two structures cannot be aligned both
are pinned, so that a doubt leaves channels whole and never cuts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from infoslice.graph.index_map import IndexMap

__all__ = [
    "Atom", "Dim", "Prod", "Sum",
    "atoms", "index_maps", "parts", "pin", "product", "resolve", "size", "split_atom", "unify",
]  # fmt: skip


@dataclass(eq=False)
class Atom:
    """``size`` interchangeable indices; ``bound`` once they are known to be another dimension."""

    size: int
    reason: str | None = None
    bound: Dim | None = None


@dataclass(eq=False)
class Sum:
    """Parts laid end to end; ``bound`` once there is a simpler form of them."""

    parts: tuple[Dim, ...]
    bound: Dim | None = field(default=None, repr=False)


@dataclass(eq=False)
class Prod:
    """Factors nested row-major, outermost first; ``bound`` once there is a simpler form of them."""

    factors: tuple[Dim, ...]
    bound: Dim | None = field(default=None, repr=False)


Dim = Atom | Sum | Prod


def size(dim: Dim) -> int:
    """Length of the axis."""
    if isinstance(dim, Atom):
        return dim.size
    if isinstance(dim, Sum):
        return sum(map(size, dim.parts))
    return math.prod(map(size, dim.factors))


def size_left(dim: Dim, kept: Mapping[Atom, int], known: dict[Dim, int]) -> int:
    """Length of the axis when atoms in ``kept`` have that many indices left.

    ``known`` remembers what was asked with the same ``kept``: long sums share their parts.
    """
    found = known.get(dim)
    if found is None:
        if isinstance(dim, Sum):
            found = sum(size_left(part, kept, known) for part in dim.parts)
        elif isinstance(dim, Prod):
            found = math.prod(size_left(factor, kept, known) for factor in dim.factors)
        elif dim.bound is not None:
            found = size_left(dim.bound, kept, known)
        else:
            found = kept.get(dim, dim.size)
        known[dim] = found
    return found


def resolve(dim: Dim) -> Dim:
    """Normal form: bindings followed, sums and products flattened, factors of size 1 dropped.

    What is in normal form already is returned itself, so that equal axes share one object.
    """
    if dim.bound is not None:
        dim.bound = resolve(dim.bound)
        return dim.bound
    if isinstance(dim, Atom):
        return dim
    made = _end_to_end(dim.parts) if isinstance(dim, Sum) else product(dim.factors)
    if type(made) is type(dim) and _within(made) == _within(dim):
        return dim
    dim.bound = made
    return made


def _within(dim: Dim) -> tuple[Dim, ...]:
    return dim.parts if isinstance(dim, Sum) else dim.factors if isinstance(dim, Prod) else ()


def _end_to_end(parts: Iterable[Dim]) -> Dim:
    flat: list[Dim] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Sum) else (part,))
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def product(factors: tuple[Dim, ...]) -> Dim:
    """Row-major nesting of ``factors`` in normal form; an empty product is one index."""
    flat: list[Dim] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Prod) else (factor,))
    flat = [factor for factor in flat if size(factor) != 1]
    if not flat:
        return Atom(1)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def atoms(dim: Dim) -> Iterator[Atom]:
    """The atoms a dimension is made of, in order, with repetitions."""
    return iter(_atoms(resolve(dim)))


def _atoms(dim: Dim) -> list[Atom]:
    if isinstance(dim, Atom):
        return [dim]
    found: list[Atom] = []
    for child in _within(dim):
        if isinstance(child, Atom):
            found.append(child)
        else:
            found.extend(_atoms(child))
    return found


def pin(dim: Dim, reason: str) -> None:
    """Forbid removing any index of ``dim``; the first reason given stays."""
    for atom in atoms(dim):
        if atom.reason is None:
            atom.reason = reason


def split_atom(atom: Atom, children: tuple[int, ...], *, nested: bool) -> tuple[Atom, ...]:
    """Bind an unbound atom to the Prod (``nested``) or Sum of fresh atoms of the given sizes."""
    fresh = tuple(Atom(child, atom.reason) for child in children)
    atom.bound = Prod(fresh) if nested else Sum(fresh)
    return fresh


def parts(dim: Dim, sizes: tuple[int, ...]) -> tuple[Dim, ...] | None:
    """``dim`` cut into consecutive pieces of these sizes, None where its structure forbids it."""
    rest: list[Dim] = [resolve(dim)]
    pieces: list[Dim] = []
    for wanted in sizes:
        taken: list[Dim] = []
        missing = wanted
        while missing:
            first = resolve(rest.pop(0))
            if isinstance(first, Sum):
                rest[:0] = first.parts
                continue
            if size(first) > missing:
                cut = _cut_off(first, missing)
                if cut is None:
                    return None
                first, behind = cut
                rest.insert(0, behind)
            taken.append(first)
            missing -= size(first)
        pieces.append(taken[0] if len(taken) == 1 else Sum(tuple(taken)))
    return tuple(pieces)


def _cut_off(dim: Dim, length: int) -> tuple[Dim, Dim] | None:
    """An atom, or a product whose outermost factor can be cut, as two pieces laid end to end."""
    if isinstance(dim, Atom):
        first, behind = split_atom(dim, (length, dim.size - length), nested=False)
        return first, behind
    if isinstance(dim, Prod):
        inner = dim.factors[1:]
        step = math.prod(map(size, inner))
        outer = resolve(dim.factors[0])
        if length % step == 0:
            cut = parts(outer, (length // step, size(outer) - length // step))
            if cut is not None:
                return product((cut[0], *inner)), product((cut[1], *inner))
    return None


def unify(first: Dim, second: Dim, reason: str) -> None:
    """State that equal indices of the two axes are the same channel.

    ``reason`` is what both are pinned with if their structures cannot be aligned.
    """
    a, b = resolve(first), resolve(second)
    if a is b:
        return
    if size(a) != size(b):
        _give_up(a, b, reason)
    elif isinstance(a, Atom) or isinstance(b, Atom):
        atom, other = (a, b) if isinstance(a, Atom) else (b, a)
        assert isinstance(atom, Atom)
        if any(inner is atom for inner in atoms(other)):
            _give_up(a, b, reason)  # an axis laid over a part of itself
            return
        atom.bound = other
        if atom.reason is not None:
            pin(other, atom.reason)
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _align(a, b, list(a.parts), list(b.parts), reason, nested=False)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _align(a, b, list(a.factors), list(b.factors), reason, nested=True)
    else:
        laid, nested = (a, b) if isinstance(a, Sum) else (b, a)
        assert isinstance(laid, Sum)
        pieces = parts(nested, tuple(map(size, laid.parts)))
        if pieces is None:
            _give_up(a, b, reason)
            return
        for part, piece in zip(laid.parts, pieces, strict=True):
            unify(part, piece, reason)


def _give_up(a: Dim, b: Dim, reason: str) -> None:
    pin(a, reason)
    pin(b, reason)


def _align(a: Dim, b: Dim, xs: list[Dim], ys: list[Dim], reason: str, *, nested: bool) -> None:
    """Unify two sequences of equal total size, splitting atoms where boundaries do not meet."""
    while xs and ys:
        x, y = resolve(xs[0]), resolve(ys[0])
        if size(x) == size(y):
            unify(x, y, reason)
            del xs[0], ys[0]
            continue
        large, small, rest = (x, size(y), xs) if size(x) > size(y) else (y, size(x), ys)
        remainder = size(large) // small if nested else size(large) - small
        if not isinstance(large, Atom) or (nested and small * remainder != size(large)):
            _give_up(a, b, reason)
            return
        rest[:1] = split_atom(large, (small, remainder), nested=nested)


def index_maps(dim: Dim) -> list[tuple[Atom, IndexMap]] | None:
    """Every atom of an axis with the positions of its indices, in order of first position.

    An atom inside two separate outer loops lies where one IndexMap cannot say: such atoms are left
    out if they are pinned, else the result is None.
    """
    found: list[tuple[Atom, IndexMap]] = []
    return found if _collect(resolve(dim), 1, 0, 1, 0, found) else None


def _collect(
    dim: Dim, unit: int, offset: int, repeat: int, period: int, found: list[tuple[Atom, IndexMap]]
) -> bool:
    """``unit``: length of one index of ``dim``; the rest as in IndexMap."""
    if isinstance(dim, Atom):
        found.append((dim, IndexMap(dim.size, unit, offset, repeat, period)))
        return True
    if isinstance(dim, Sum):
        for part in dim.parts:
            if not _collect(part, unit, offset, repeat, period, found):
                return False
            offset += size(part) * unit
        return True
    outer, inner = 1, size(dim) * unit
    for factor in dim.factors:
        block = inner  # length of one pass over this factor
        inner //= size(factor)
        if outer == 1:
            loop = (repeat, period)
        elif repeat == 1:
            loop = (outer, block)
        elif period == outer * block:
            loop = (repeat * outer, block)
        elif all(atom.reason for atom in atoms(factor)):
            outer *= size(factor)
            continue
        else:
            return False
        if not _collect(factor, inner, offset, *loop, found):
            return False
        outer *= size(factor)
    return True
