"""New tensors in place of old ones: in a module itself, or in a copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from infoslice.graph.shell import copy_module, is_special, named_tensors

__all__ = ["copy_with", "like", "replace_tensors"]


def like(old: Tensor, values: Tensor) -> Tensor:
    """``values`` as what ``old`` is: parameter or buffer, with its flags and attributes."""
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    new.__dict__.update(vars(old))
    return new


def replace_tensors(model: nn.Module, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Put each tensor of ``new`` wherever ``model`` keeps that of ``old``; gradient hooks go along.

    Followed are parameters, buffers and attributes of all modules, and lists, tuples and dicts in
    them; not tensors that other objects hold.
    """
    _follow(model, {id(a): b for a, b in zip(old, new, strict=True)}, set())
    for before, after in zip(old, new, strict=True):
        if before._backward_hooks:
            after._backward_hooks = before._backward_hooks  # the same table: handles stay good


def _follow(holder: Any, memo: Mapping[int, Tensor], seen: set[int]) -> Any:
    """What stands for ``holder`` afterwards: itself, changed within, or the new tensor."""
    if isinstance(holder, Tensor):
        return memo.get(id(holder), holder)
    if id(holder) in seen:
        return holder
    seen.add(id(holder))
    if isinstance(holder, nn.Module):
        _follow(vars(holder), memo, seen)
    elif isinstance(holder, dict):
        for key, value in holder.items():
            followed = _follow(value, memo, seen)
            if followed is not value:
                holder[key] = followed
    elif isinstance(holder, list):
        holder[:] = [_follow(value, memo, seen) for value in holder]
    elif isinstance(holder, tuple):
        followed = [_follow(value, memo, seen) for value in holder]
        if any(a is not b for a, b in zip(holder, followed, strict=True)):
            made = type(holder)._make(followed) if hasattr(holder, "_make") else tuple(followed)
            return made
    return holder


def copy_with(model: nn.Module, old: Sequence[Tensor], new: Sequence[Tensor]) -> nn.Module:
    """A deep copy of ``model`` with ``new`` in place of ``old``, which are never copied.

    Unlike ``copy.deepcopy``, attributes of parameters are kept, and modules may hold results of
    computations (as old-style weight norm does).
    """
    memo: dict[int, Any] = {id(a): b for a, b in zip(old, new, strict=True)}
    for _, tensor in named_tensors(model):
        if id(tensor) not in memo and not is_special(tensor):
            memo[id(tensor)] = like(tensor, tensor.detach().clone())
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach().clone())
    return copy_module(model, memo)
