"""What happens to the output of a layer before another layer reads it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from infoslice.graph.channel_graph import ChannelGraph
from infoslice.graph.recording import Node

__all__ = ["Step", "Sum", "following", "sums"]

_NORMS = ("batch_norm",)
_POINTWISE = """relu relu6 hardtanh hardswish hardsigmoid gelu silu elu selu leaky_relu tanh sigmoid
    softplus mish clamp clamp_min clamp_max dropout feature_dropout""".split()
_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "conv_transpose1d",
           "conv_transpose2d", "conv_transpose3d")  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation with one tensor input: a batch norm (``module``) or a pointwise function."""

    module: str
    is_norm: bool
    _node: Node

    @property
    def is_relu(self) -> bool:
        """Whether it is zero for all that is negative, and nothing else."""
        return _name(self._node) == "relu"

    def apply(self, model: nn.Module, x: Tensor) -> Tensor:
        """The operation with the parameters of ``model``, in evaluation mode."""
        if self.is_norm:
            return cast(Tensor, model.get_submodule(self.module)(x))
        function = cast(Callable[..., Any], self._node.target)
        return cast(Tensor, function(x, *self._node.args[1:], **self._node.kwargs))


def following(graph: ChannelGraph) -> dict[str, tuple[Step, ...]]:
    """For each layer of ``graph`` the batch norm and activation applied to its output alone.

    The chain ends at the first operator that is neither, that has a second tensor input (the sum of
    a residual block), or whose input is read elsewhere too. Only layers called exactly once are
    listed: what follows may differ from call to call.
    """
    calls = [node for node in graph.signature.nodes if node.op == "call_function"]
    layers = Counter(node.module for node in calls if _name(node) in _LAYERS)
    norms = Counter(node.module for node in calls if _name(node) in _NORMS)
    return {
        node.module: _chain(node, norms)
        for node in calls
        if _name(node) in _LAYERS and layers[node.module] == 1
    }


@dataclass(frozen=True)
class Sum:
    """Where a layer's output, batch-normed by ``norm`` if that is not empty, meets another tensor.

    ``before``: the layers whose first call comes before the sum. ``rectified``: only a ReLU reads
    it.
    """

    layer: str
    norm: str
    before: frozenset[str]
    rectified: bool


def sums(graph: ChannelGraph) -> dict[str, Sum]:
    """Layer -> the sum of its output, as it is or batch-normed, and another tensor of its shape.

    Only layers and norms called exactly once are listed. Where both operands come from such layers
    it is the one that reads more variables.
    """
    calls = [node for node in graph.signature.nodes if node.op == "call_function"]
    place = {node: number for number, node in enumerate(calls)}
    first: dict[str, int] = {}
    for node in calls:
        first.setdefault(node.module, place[node])
    chains = following(graph)
    found: dict[Node, tuple[int, Sum]] = {}
    for node in calls:
        if node.module not in chains or _name(node) not in _LAYERS:
            continue
        steps, last = chains[node.module][:1], node
        norm = steps[0].module if steps and steps[0].is_norm else ""
        if norm:
            (last,) = node.users
        (then, *others) = last.users or (None,)
        if then is None or others or _name(then) != "add" or then.kwargs.get("alpha", 1) != 1:
            continue
        operands = [a for a in then.args if isinstance(a, Node) and a.value == last.value]
        if len(operands) != 2 or operands[0] is operands[1]:
            continue
        reads = math.prod(graph.tensors[f"{node.module}.weight"][0][1:])
        if then not in found or found[then][0] < reads:
            before = frozenset(n for n in graph.layers if first.get(n, place[then]) < place[then])
            rectified = len(then.users) == 1 and _name(next(iter(then.users))) == "relu"
            found[then] = reads, Sum(node.module, norm, before, rectified)
    return {one.layer: one for _, one in found.values()}


def _chain(node: Node, norms: Counter[str]) -> tuple[Step, ...]:
    steps: list[Step] = []
    while len(node.users) == 1:
        (node,) = node.users
        name = _name(node)
        is_norm = name in _NORMS
        if not (is_norm or name in _POINTWISE) or (is_norm and norms[node.module] > 1):
            break
        steps.append(Step(node.module, is_norm, node))
    return tuple(steps)


def _name(node: Node) -> str:
    """``relu`` for both ``aten.relu.default`` and ``aten.relu_.default``."""
    return str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
