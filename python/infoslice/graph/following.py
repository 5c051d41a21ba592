"""What happens to the output of a layer before another layer or a second operand meets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from infoslice.graph.channel_graph import ChannelGraph
from infoslice.graph.recording import Node

__all__ = ["Step", "following"]

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
