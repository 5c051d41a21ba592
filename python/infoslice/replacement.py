"""Cuts tensors, and puts the new ones in place of the old: in a module itself, or in a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from infoslice import ops
from infoslice.graph.cuts import AxisCut
from infoslice.graph.shell import caches, copy_module, is_special, named_tensors

__all__ = ["Work", "batches", "copy_with", "like", "replace_tensors", "sliced"]

Work = list[tuple[Tensor, list[AxisCut]]]  # tensors to cut, and how


def like(old: Tensor, values: Tensor) -> Tensor:
    """``values`` as what ``old`` is: parameter or buffer, with its flags and attributes."""
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    new.__dict__.update(vars(old))
    return new


def replace_tensors(model: nn.Module, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Put each tensor of ``new`` wherever ``model`` keeps that of ``old``; gradient hooks go along.

    Followed are parameters, buffers and attributes of all modules, and lists, tuples and dicts in
    them; not tensors that other objects hold. What modules keep in caches is left behind.
    """
    for module, name, _ in list(caches(model)):
        setattr(module, name, {})
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
    memo |= {id(cache): {} for _, _, cache in caches(model)}
    for _, tensor in named_tensors(model):
        if id(tensor) not in memo and not is_special(tensor):
            memo[id(tensor)] = like(tensor, tensor.detach().clone())
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach().clone())
    return copy_module(model, memo)


def batches(work: Work) -> Iterator[Work]:
    """Take ``work`` in parts, largest tensors first, none larger than the first; empties it.

    A part frees at least what it takes, and the first takes most: once it has its memory, the
    others find theirs, so that a lack of memory shows before anything is changed.
    """
    work.sort(key=lambda item: _bytes_after(*item))
    room = max([_BATCH, *(_bytes_after(*item) for item in work[-1:])])
    while work:
        batch: Work = []
        left = room
        while work and _bytes_after(*work[-1]) <= left:
            batch.append(work.pop())
            left -= _bytes_after(*batch[-1])
        yield batch


_BATCH = 64 * 2**20  # bytes: less is not worth another walk over the model


def _bytes_after(tensor: Tensor, cuts: Sequence[AxisCut]) -> int:
    shape = list(tensor.shape)
    for cut in cuts:
        shape[cut.axis] = cut.keep.numel()
    return math.prod(shape) * tensor.element_size()


def sliced(work: Work) -> list[Tensor]:
    """The new tensors, by one call for each device."""
    result: list[Tensor | None] = [None] * len(work)
    for device in dict.fromkeys(tensor.device for tensor, _ in work):
        here = [i for i, (tensor, _) in enumerate(work) if tensor.device == device]
        made = ops.slice_channels(
            [work[i][0].detach() for i in here],
            [tuple(cut.axis for cut in work[i][1]) for i in here],
            [tuple(cut.keep for cut in work[i][1]) for i in here],
        )
        for i, values in zip(here, made, strict=True):
            result[i] = like(work[i][0], values)
    return [tensor for tensor in result if tensor is not None]
