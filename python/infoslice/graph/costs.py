"""What a model costs at given widths: parameters, multiply-accumulates, bytes of weights.

The graph knows every axis of every tensor as a polynomial in the numbers of channels that the
groups keep, so a cost is a sum of products of axis lengths: exact, and evaluated in microseconds
without running anything. ``tests/test_budget.py`` holds it to ``torch.utils.flop_counter``.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from infoslice.graph.dims import Atom, Dim, Sum, resolve, size
from infoslice.graph.latency import LatencyTable
from infoslice.graph.recording import Node, argument, operator_name
from infoslice.graph.walk import rules

if TYPE_CHECKING:  # that module gives every graph its costs
    from infoslice.graph.channel_graph import ChannelGraph

__all__ = ["Costs"]

Widths = npt.NDArray[np.int64]
# A length: the groups multiplied (by number, with repetitions) -> factor; () is the constant.
Length = dict[tuple[int, ...], int]


class Costs:
    """Costs of the model of a graph, at any widths of its groups.

    Every method takes ``keep``: group name -> how many channels stay, or which (as
    :func:`infoslice.select` and :func:`infoslice.plan` have it); groups not named stay whole.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        signature = graph.signature
        self.groups = tuple(group.name for group in graph.prunable)
        self.channels: Widths = np.array([g.channels for g in graph.prunable], dtype=np.int64)
        lengths = _Lengths({signature.atoms[name]: i for i, name in enumerate(self.groups)})
        stored = [(name, lengths.terms(1, dims)) for name, dims in signature.weights.items()]
        products = [
            lengths.terms(1, dims)
            for node in signature.nodes
            for dims in _multiplied(node, signature.dims)
        ]
        parameters = [term for name, term in stored if name in signature.parameters]
        weigh = [(graph.tensors[name][1].itemsize * c, axes) for name, (c, axes) in stored]
        self._tables = {
            "parameters": _Table(lengths, parameters),
            "macs": _Table(lengths, products),
            "memory": _Table(lengths, weigh),
        }
        self._latency = LatencyTable(graph)

    def parameters(self, keep: Mapping[str, Tensor | int] | None = None) -> int:
        """Number of parameters, tied ones once; buffers do not count."""
        return int(self.at("parameters", self.widths(keep)))

    def macs(self, keep: Mapping[str, Tensor | int] | None = None) -> int:
        """Multiply-accumulates of one forward on the example inputs.

        Those of convolutions, linear layers, matrix products, einsum and attention, by the
        convention of ``torch.utils.flop_counter`` (which counts two for each): padding counts,
        causal masks save nothing, elementwise work is not counted.
        """
        return int(self.at("macs", self.widths(keep)))

    def memory(self, keep: Mapping[str, Tensor | int] | None = None) -> int:
        """Bytes of all parameters and buffers; activations are not in it."""
        return int(self.at("memory", self.widths(keep)))

    def latency(self, keep: Mapping[str, Tensor | int] | None = None) -> float:
        """Predicted seconds of one forward on the device of the example inputs.

        The sum over the operators called, each measured on its own at the shapes it would have
        (:class:`infoslice.graph.latency.LatencyTable`).
        """
        return float(self.at("latency", self.widths(keep)))

    def at(self, cost: str, widths: Widths) -> npt.NDArray[Any]:
        """One cost at many widths: int64 ``[..., groups]`` in the order of ``groups`` -> ``[...]``.

        ``cost``: ``"parameters"``, ``"macs"``, ``"memory"`` or ``"latency"``.
        """
        if cost == "latency":
            rows = [widths[place] for place in np.ndindex(widths.shape[:-1])]
            kept = [dict(zip(self.groups, row.tolist(), strict=True)) for row in rows]
            return np.array([self._latency(row) for row in kept]).reshape(widths.shape[:-1])
        return self._tables[cost](widths)

    def widths(self, keep: Mapping[str, Tensor | int] | None = None) -> Widths:
        """Channels kept in each of ``groups``, int64. Raises ValueError for other groups."""
        number = {name: i for i, name in enumerate(self.groups)}
        widths: Widths = self.channels.copy()
        for name, kept in (keep or {}).items():
            count = kept if isinstance(kept, int) else len(kept)
            if name not in number:
                raise ValueError(
                    f"Costs: argument keep: expected names of prunable groups, got {name!r}"
                )
            if not 1 <= count <= self.channels[number[name]]:
                raise ValueError(
                    f"Costs: argument keep: expected 1 to {self.channels[number[name]]} channels "
                    f"of {name}, got {count}"
                )
            widths[number[name]] = count
        return widths


class _Lengths:
    """Every length of an axis that occurs, once; number 0 is the length 1."""

    def __init__(self, group_of: Mapping[Atom, int]) -> None:
        self.group_of = group_of
        self.numbers: dict[tuple[tuple[tuple[int, ...], int], ...], int] = {(((), 1),): 0}
        self._known: dict[Dim, Length] = {}

    def terms(self, factor: int, dims: Iterable[Dim]) -> tuple[int, list[int]]:
        """``factor`` times all constant lengths, and the numbers of the others."""
        axes: list[int] = []
        for dim in dims:
            length = self.of(dim)
            if set(length) <= {()}:
                factor *= length.get((), 0)
            else:
                key = tuple(sorted(length.items()))
                axes.append(self.numbers.setdefault(key, len(self.numbers)))
        return factor, axes

    def of(self, dim: Dim) -> Length:
        """The length as a polynomial in the widths of the groups."""
        dim = resolve(dim)
        if dim in self._known:
            return self._known[dim]
        length: Length
        if isinstance(dim, Atom):
            number = self.group_of.get(dim)
            length = {(): dim.size} if number is None else {(number,): 1}
        elif isinstance(dim, Sum):
            length = {}
            for part in map(self.of, dim.parts):
                for groups, factor in part.items():
                    length[groups] = length.get(groups, 0) + factor
        else:
            length = {(): 1}
            for part in map(self.of, dim.factors):
                product: Length = {}
                for groups, factor in length.items():
                    for more, by in part.items():
                        both = tuple(sorted(groups + more))
                        product[both] = product.get(both, 0) + factor * by
                length = product
        self._known[dim] = length
        return length


class _Table:
    """A sum of products of lengths, as arrays."""

    def __init__(self, lengths: _Lengths, terms: Sequence[tuple[int, list[int]]]) -> None:
        groups = len(lengths.group_of)
        merged: dict[tuple[int, ...], int] = {}
        for factor, axes in terms:
            key = tuple(sorted(axes))
            merged[key] = merged.get(key, 0) + factor
        used = sorted({0, *(axis for axes in merged for axis in axes)})
        place = {axis: i for i, axis in enumerate(used)}
        all_lengths = list(lengths.numbers)
        monomials = [all_lengths[axis] for axis in used]
        flat = [item for length in monomials for item in length]
        self._starts = np.cumsum([0, *(len(length) for length in monomials)])[:-1]
        # The width of no group (number ``groups``) is 1, and so is length 0: they fill the rows.
        self._groups = _padded([g for g, _ in flat], groups)
        self._by = np.array([by for _, by in flat], dtype=np.int64)
        self._axes = _padded([tuple(place[axis] for axis in axes) for axes in merged], 0)
        self._factors = np.array(list(merged.values()), dtype=np.int64)

    def __call__(self, widths: Widths) -> npt.NDArray[np.int64]:
        ones = np.ones((*widths.shape[:-1], 1), dtype=np.int64)
        extended = np.concatenate([widths, ones], axis=-1)
        monomials = extended[..., self._groups].prod(-1) * self._by
        lengths = np.add.reduceat(monomials, self._starts, axis=-1)
        result: npt.NDArray[np.int64] = lengths[..., self._axes].prod(-1) @ self._factors
        return result


def _padded(rows: Sequence[tuple[int, ...]], fill: int) -> npt.NDArray[np.intp]:
    longest = max(map(len, rows), default=0)
    padded = [(*row, *[fill] * (longest - len(row))) for row in rows]
    return np.array(padded, dtype=np.intp).reshape(len(rows), longest)


def _multiplied(
    node: Node, dims: Mapping[Node, tuple[tuple[Dim, ...], ...]]
) -> Iterator[Sequence[Dim]]:
    """The axes whose lengths multiply to the multiply-accumulates of an operator, by product."""
    if node.op != "call_function" or not dims.get(node):
        return

    def axes(position: int, name: str) -> tuple[Dim, ...]:
        return dims[argument(node, position, name)][0]

    (out, *_), kind = dims[node], operator_name(node).removeprefix("aten::")
    if kind in ("conv1d", "conv2d", "conv3d", "convolution", "_convolution") or (
        kind in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    ):
        x, weight = axes(0, "input"), axes(1, "weight")
        any_kind = kind.endswith("convolution")
        transposed = bool(node.args[6]) if any_kind else "transpose" in kind
        spatial = len(weight) - 2
        batch = x[: len(x) - spatial - 1]
        yield [*batch, *(x if transposed else out)[-spatial:], *weight]
    elif kind == "linear":
        yield [*axes(0, "input"), out[-1]]
    elif kind in ("mm", "bmm", "matmul", "_grouped_mm"):
        yield [*out, axes(0, "self")[-1]]
    elif kind in ("addmm", "baddbmm"):
        yield [*out, axes(1, "mat1")[-1]]
    elif kind == "scaled_dot_product_attention":
        q, k = axes(0, "query"), axes(1, "key")
        yield [*out[:-1], k[-2], q[-1]]
        yield [*out[:-1], k[-2], out[-1]]
    elif kind == "einsum":
        yield from _einsum(node, dims)
    elif isinstance(node.target, torch._ops.OpOverload) and operator_name(node) not in rules:
        yield [Atom(_counted(node))]  # all it touches stays as it is


def _counted(node: Node) -> int:
    """What ``torch.utils.flop_counter`` finds inside an operator (recurrent layers, ...)."""
    given = pytree.tree_map_only(
        Node, lambda n: torch.empty(n.value.shape, dtype=n.value.dtype, device="meta"),
        (node.args, node.kwargs),
    )  # fmt: skip
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            node.target(*given[0], **given[1])
        except (RuntimeError, TypeError, NotImplementedError):
            return 0
    return int(counter.get_total_flops()) // 2


def _einsum(
    node: Node, dims: Mapping[Node, tuple[tuple[Dim, ...], ...]]
) -> Iterator[Sequence[Dim]]:
    """Products from left to right; a letter is summed over once no later term has it."""
    left, arrow, right = str(node.args[0]).replace(" ", "").partition("->")
    terms = left.split(",")
    lengths: dict[str, Dim] = {}
    for i, operand in enumerate(node.args[1]):
        shape = dims[operand][0]
        dots = string.digits[: len(shape) - len(terms[i].replace("...", ""))][::-1]
        terms[i] = terms[i].replace("...", dots)
        for letter, dim in zip(terms[i], shape, strict=True):
            if letter not in lengths or size(lengths[letter]) == 1:
                lengths[letter] = dim
    letters = "".join(terms)
    wanted = set(right if arrow else (letter for letter in letters if letters.count(letter) == 1))
    wanted |= {letter for letter in letters if letter.isdigit()}
    held = set(terms[0])
    for i, term in enumerate(terms[1:], 2):
        here = wanted.union(*terms[i:])
        # torch first sums what only one side has, and multiplies elementwise if nothing is left.
        first, second = held & (here | set(term)), set(term) & (here | held)
        if first & second - here:
            yield [lengths[letter] for letter in sorted(first | second)]
        held = (first | second) & here
