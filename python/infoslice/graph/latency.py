"""How long the operators of a model take at given widths, measured one by one and remembered."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from infoslice.graph.dims import Dim, size_left
from infoslice.graph.recording import Node, Shape, operator_name
from infoslice.graph.shell import TensorSpec

if TYPE_CHECKING:
    from infoslice.graph.channel_graph import ChannelGraph

__all__ = ["LatencyTable"]

_COPIES = (
    "aten::to",
    "aten::contiguous",
)  # may return their argument itself, hence look like views


class LatencyTable:
    """Seconds of operators by what they are called with: measured once, when first asked for.

    An operator is run on contiguous random tensors of the shapes and dtypes it would have, on the
    device of the example inputs, and the median counts. Views cost nothing; other strides and the
    Python between the operators are left out.

    ``unmeasured``: operators that cannot be run on their own -> why; they count as nothing.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._signature = graph.signature
        devices = [s.device for s in pytree.tree_leaves(graph.inputs) if isinstance(s, TensorSpec)]
        self.device = torch.device(next((d for d in devices if d != "cpu"), "cpu"))
        self.unmeasured: dict[str, str] = {}
        self._seconds: dict[Any, float] = {}
        touched = sum(_bytes(node) for node in graph.signature.nodes if not _is_view(node))
        self._block = torch.empty(min(touched, 1 << 24), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._seconds)

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Seconds of one forward with ``kept`` channels in the groups named.

        Raises ValueError if the model was traced on the meta device.
        """
        if self.device.type == "meta":
            raise ValueError(
                "LatencyTable: argument graph: expected a model traced on the device to measure "
                "on, got example inputs on the meta device"
            )
        atoms = self._signature.atoms
        widths = {atoms[name]: count for name, count in kept.items()}
        known: dict[Dim, int] = {}

        def shape(node: Node) -> Any:
            dims = self._signature.dims.get(node)
            if not dims or not isinstance(node.value, Shape):
                return node.value
            return Shape(tuple(size_left(dim, widths, known) for dim in dims[0]), node.value.dtype)

        total = 0.0
        for node in self._signature.nodes:
            if node.op != "call_function" or _is_view(node):
                continue
            args, kwargs = pytree.tree_map_only(Node, shape, (node.args, node.kwargs))
            args = _follow(node, args, shape(node))
            if operator_name(node) == "aten::repeat_interleave":
                kwargs = {}  # the size of the result
            key = (node.target, *_hashable(args), *_hashable(kwargs))
            if key not in self._seconds:
                self._seconds[key] = self._measure(node, args, kwargs)
            total += self._seconds[key]
        return total

    def _measure(self, node: Node, args: Any, kwargs: Any) -> float:
        def synthetic(shape: Shape) -> Tensor:
            if shape.dtype.is_floating_point or shape.dtype.is_complex:
                return torch.randn(shape.shape, dtype=shape.dtype, device=self.device)
            return torch.zeros(shape.shape, dtype=shape.dtype, device=self.device)

        try:
            args, kwargs = pytree.tree_map_only(Shape, synthetic, (args, kwargs))
            return _seconds(lambda: node.target(*args, **kwargs), self.device, self._block)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            self.unmeasured[operator_name(node)] = str(error).partition("\n")[0]
            return 0.0


def _bytes(node: Node) -> int:
    value = node.value
    return math.prod(value.shape) * value.dtype.itemsize if isinstance(value, Shape) else 0


def _is_view(node: Node) -> bool:
    """Whether the operator moves no data: views, and taking one of several results."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    aliases = [result.alias_info for result in node.target._schema.returns]
    views = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return views and operator_name(node) not in _COPIES


def _follow(node: Node, args: Any, out: Any) -> Any:
    """The arguments with numbers that say how many channels there are set to the new ones."""
    kind, args = operator_name(node).removeprefix("aten::"), list(args)
    if kind.startswith("conv") and len(args) > 6:
        x, weight = args[0].shape, args[1].shape
        place = 8 if kind == "convolution" else 6
        transposed = args[6] if place == 8 else "transpose" in kind
        channel = len(x) - len(weight) + 1
        args[place] = (out.shape if transposed else x)[channel] // weight[1]
    elif kind in ("layer_norm", "rms_norm"):
        args[1] = out.shape[-len(args[1]) :]
    elif kind == "group_norm" and args[1] > 1:  # one group stays one
        args[1] = args[1] * out.shape[1] // node.args[0].value.shape[1]
    return tuple(args)


def _hashable(tree: Any) -> tuple[Any, ...]:
    leaves, structure = pytree.tree_flatten(tree)
    return (*map(str, leaves), str(structure))


@torch.no_grad()
def _seconds(call: Callable[[], Any], device: torch.device, block: Tensor) -> float:
    """Median seconds of a call, over at least 5 and at most 50 of them in about 50 ms.

    A CPU finds little of an operator's data in its fast caches, other operators having run since:
    writing a ``block`` as large as what they touch, but of 16 MiB at most, has the same effect. A
    device works behind the back of its host: calls are queued ten at a time, and what lasts longer,
    queueing or work, counts.
    """
    queued = 1 if device.type == "cpu" else 10
    taken: list[float] = []
    call()
    start = time.perf_counter()
    while len(taken) < 5 or (len(taken) < 50 and time.perf_counter() - start < 0.05):
        block.zero_()
        _wait(device)
        begin = time.perf_counter()
        for _ in range(queued):
            call()
        _wait(device)
        taken.append((time.perf_counter() - begin) / queued)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
