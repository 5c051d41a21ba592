"""Walks a captured ATen graph once and hands every node to the rule of its operator.

A rule is a function ``(walk, node) -> value`` under ``@rule("aten::name", ...)``. It says which
axes of the results are which axes of the arguments (``Walk.unify``), which axes nobody may cut
(``Walk.pin``), which axes of weights make or take channels (``Walk.use``) and which sizes modules
keep as attributes (``Walk.size_attribute``). An operator without a rule pins all it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from infoslice.graph.dims import Atom, Dim, pin, size, unify

__all__ = [
    "MULTIPLIER", "SPATIAL", "Result", "Role", "Rule", "SizeUse", "Use", "Value", "Walk",
    "argument", "call_site", "fresh", "module_path", "operator_name", "rule", "rules", "shape_of",
    "tensor_shapes",
]  # fmt: skip

Role = Literal["out", "in", "follow"]

# Reasons of axes that were never channels; such atoms form no group and are not reported.
SPATIAL = "spatial or kernel axis"
MULTIPLIER = "channel multiplier of a depthwise convolution"


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph: one dimension per axis.

    ``tensor`` names the parameter or buffer this is, ``axes`` the axis of it that each axis is;
    both survive transposition only. None for everything that was computed.
    """

    dims: tuple[Dim, ...]
    tensor: str | None = None
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Use:
    """A layer writes (out), reads (in) or carries along (follow) channels on a tensor's axis."""

    tensor: str
    axis: int
    role: Role
    module: str


@dataclass(frozen=True, eq=False)
class SizeUse:
    """A module may keep the length of ``dim`` in an attribute (at ``position`` of a tuple)."""

    module: str
    attribute: str
    position: int | None
    dim: Dim


Result = Value | tuple[Value | None, ...] | None
Rule = Callable[["Walk", fx.Node], Result]
rules: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by schema name; overloads share it, ``name_`` goes to name."""

    def register(function: Rule) -> Rule:
        for name in names:
            rules[name] = function
        return function

    return register


@dataclass
class Walk:
    """State of one walk over a graph."""

    module_of: Callable[[str, str], str]
    weights: dict[str, Value] = field(default_factory=dict)
    values: dict[fx.Node, Result] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    layers: dict[str, None] = field(default_factory=dict)
    renormalised: list[tuple[str, Dim]] = field(default_factory=list)
    baked: bool = False  # numbers reach an operator: the code may spell out or use channel counts

    # ---- running

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Apply the rules to all ``call_function`` nodes in order."""
        for node in nodes:
            if node.op == "call_function":
                for value in self.inputs(node):
                    if value.tensor is not None:
                        self.layers[self.module_of(value.tensor, module_path(node))] = None
                self.values[node] = self._apply(node)
            elif node.op == "output":
                for value in self.inputs(node):
                    self.pin(value.dims, "model output")

    def _apply(self, node: fx.Node) -> Result:
        name = operator_name(node)
        if name == "getitem":
            source = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            index = node.args[1]
            return source[index] if isinstance(source, tuple) and isinstance(index, int) else None
        function = rules.get(name) or rules.get(name.rstrip("_"))
        if function is None:
            return self.unknown(node)
        try:
            result = function(self, node)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Arguments that the rule does not foresee: whole, never guessed.
            return self.unknown(node, f"{self.where(node)} is not understood: {error}")
        made = [tuple(map(size, value.dims)) for value in _flat(result) if value is not None]
        if made != tensor_shapes(node.meta.get("val")):
            # A form of the operator that the rule does not foresee: whole, never guessed.
            reason = f"{self.where(node)} has a form that is not understood"
            for value in _flat(result):
                if value is not None:
                    self.pin(value.dims, reason)
            return self.unknown(node, reason)
        return result

    # ---- what rules read

    def inputs(self, node: fx.Node) -> list[Value]:
        """Every tensor argument, nested ones included."""
        found: list[Value] = []
        for argument in node.all_input_nodes:
            found.extend(value for value in _flat(self.values.get(argument)) if value is not None)
        return found

    def value(self, argument: Any) -> Value | None:
        """The tensor a node argument stands for, None for None and numbers."""
        result = self.values.get(argument) if isinstance(argument, fx.Node) else None
        return result if isinstance(result, Value) else None

    def tensor(self, argument: Any) -> Value:
        """The tensor a node argument stands for; the schema guarantees that it is one."""
        value = self.value(argument)
        if value is None:
            raise AssertionError(f"expected a tensor argument, got {argument!r}")
        return value

    def where(self, node: fx.Node) -> str:
        """Operator and module path, for reasons."""
        return call_site(node)

    # ---- what rules say

    def unify(self, node: fx.Node, first: Dim, second: Dim) -> None:
        """The two axes are the same channels."""
        unify(first, second, f"{self.where(node)} joins axes of different structure")

    def pin(self, dims: Sequence[Dim], reason: str) -> None:
        """Nothing may be removed from these axes."""
        for dim in dims:
            pin(dim, reason)

    def use(self, node: fx.Node, value: Value | None, axis: int, role: Role) -> None:
        """A layer writes, reads or carries channels along ``axis`` of a weight."""
        if value is not None and value.tensor is not None:
            module = self.module_of(value.tensor, module_path(node))
            self.uses.append(Use(value.tensor, value.axes[axis], role, module))

    def size_attribute(
        self, node: fx.Node, attribute: str, dim: Dim, position: int | None = None
    ) -> None:
        """The module of ``node`` may keep the length of ``dim`` under ``attribute``."""
        self.sizes.append(SizeUse(module_path(node), attribute, position, dim))

    def unknown(self, node: fx.Node, reason: str | None = None) -> Result:
        """Pin all axes of all tensors that go in and come out."""
        reason = reason or f"{self.where(node)} is not understood"
        for value in self.inputs(node):
            self.pin(value.dims, reason)
        return fresh(node, reason)


def fresh(node: fx.Node, reason: str | None = None) -> Result:
    """New dimensions for the result of ``node``, shaped as it is."""
    val = node.meta.get("val")
    if isinstance(val, Tensor):
        return Value(tuple(Atom(n, reason) for n in val.shape))
    if isinstance(val, (tuple, list)):
        return tuple(
            Value(tuple(Atom(n, reason) for n in item.shape)) if isinstance(item, Tensor) else None
            for item in val
        )
    return None


def operator_name(node: fx.Node) -> str:
    """Schema name without overload (``aten::add``), or the name of a plain function."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name
    return getattr(target, "__name__", str(target))


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the call; '' is the model itself."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return ".".join(part.partition("@")[0] for part in path.split("."))


def call_site(node: fx.Node) -> str:
    """Operator and module path, as text."""
    path = module_path(node)
    name = operator_name(node).removeprefix("aten::")
    return f"{name} in '{path}'" if path else f"{name} in the model's own forward"


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An operator argument given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of the tensor a node yields."""
    return tuple(node.meta["val"].shape)


def tensor_shapes(val: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors in a node's value, in order."""
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(val) if isinstance(leaf, Tensor)]


def _flat(result: Result) -> tuple[Value | None, ...]:
    return result if isinstance(result, tuple) else (result,)
