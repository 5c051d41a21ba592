"""A recorded forward: which ATen operators were called, with what, in which module."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "Node",
    "Shape",
    "argument",
    "call_site",
    "no_garbage_collection",
    "operator_name",
    "shape_of",
    "tensor_shapes",
]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause it while a hundred thousand small objects are made that all live on."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Shape:
    """What is remembered of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Node:
    """A tensor that comes in (``placeholder``), an operator call, or the output of the model.

    ``args`` and ``kwargs`` have a Node in place of every tensor, ``value`` a Shape; ``module`` is
    the path of the innermost module whose forward made the call, '' the model itself. Operators
    that return several tensors are followed by a node of ``operator.getitem`` for each.
    """

    op: Literal["placeholder", "call_function", "output"]
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    module: str = ""
    users: dict[Node, None] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes among the arguments, nested ones included, each once."""
        return tuple(dict.fromkeys(_nodes((self.args, self.kwargs))))


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, dict):
        yield from _nodes(tuple(value.values()))


def remembered(value: Any) -> Any:
    """``value`` with a Shape in place of every tensor."""
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), value.dtype)
    return pytree.tree_map_only(Tensor, lambda t: Shape(tuple(t.shape), t.dtype), value)


def operator_name(node: Node) -> str:
    """Schema name without overload (``aten::add``), or the name of a plain function."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name
    return getattr(target, "__name__", str(target))


def call_site(node: Node) -> str:
    """Operator and module path, as text."""
    name = operator_name(node).removeprefix("aten::")
    return f"{name} in '{node.module}'" if node.module else f"{name} in the model's own forward"


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An operator argument given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of the tensor a node yields."""
    shape: tuple[int, ...] = node.value.shape
    return shape


def tensor_shapes(value: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors in a node's value, in order."""
    if isinstance(value, Shape):
        return [value.shape]
    return [leaf.shape for leaf in pytree.tree_leaves(value) if isinstance(leaf, Shape)]
