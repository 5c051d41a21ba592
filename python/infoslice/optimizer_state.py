"""Optimizer state follows a cut: what lies along a parameter is sliced as the parameter is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree as pytree

from infoslice.graph.shell import is_special

__all__ = ["replace_parameters", "state_along"]

_EXPECTED = "PruningPlan.apply: argument optimizer: expected"


def state_along(
    optimizers: Iterable[Optimizer], cut: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    """The state tensors to cut with each parameter: (name of the parameter, state tensor).

    A state tensor belongs to the channels if it has its parameter's shape, for every parameter of
    the optimizer that has state of that name: that tells momenta from a square preconditioner.
    Numbers and tensors without axes (``step``) stay. Nothing is changed.

    Args:
        optimizers: all that train the model.
        cut: the tensors to cut, by name.

    Raises:
        TypeError: no optimizer; one that wraps another; sharded or quantised state.
        ValueError: a trainable parameter to cut is in none of the optimizers, or its state is of
            another kind than that above.
    """
    optimizers = tuple(optimizers)
    held: set[int] = set()
    found: list[tuple[str, Tensor]] = []
    for optimizer in optimizers:
        _refuse_kinds(optimizer, cut)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        held.update(map(id, parameters))
        odd = {
            key
            for parameter, entries in optimizer.state.items()
            for key, value in entries.items()
            if not _stays(value) and not _lies_along(value, parameter)
        }
        for name, parameter in cut.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if _stays(value):
                    continue
                if key in odd or not _lies_along(value, parameter):
                    raise ValueError(
                        f"{_EXPECTED} state of the shape of its parameter, got "
                        f"{type(optimizer).__name__} with state[{name}][{key!r}], "
                        f"{_described(value, parameter)}: it cannot be cut channel by channel; "
                        f"apply the plan without optimizer and make a new one"
                    )
                if is_special(value):
                    raise TypeError(
                        f"{_EXPECTED} plain state tensors, got state[{name}][{key!r}] of type "
                        f"{type(value).__name__} (sharded or quantised)"
                    )
                found.append((name, value))
    for name, tensor in cut.items():
        if tensor.requires_grad and id(tensor) not in held:
            owners = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
            raise ValueError(
                f"{_EXPECTED} one that holds the parameters to cut, got {owners} without {name}; "
                f"was it made for another model, or before an earlier cut? Pass all optimizers of "
                f"the model as a list, freeze what none of them trains, or make a new one"
            )
    return found


def replace_parameters(
    optimizers: Iterable[Optimizer], old: Sequence[Tensor], new: Sequence[Tensor]
) -> None:
    """Put the new parameters and state tensors in place of the old.

    The groups and their order stay, as do all other objects that hold on to the optimizer.
    """
    memo = {id(a): b for a, b in zip(old, new, strict=True)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [memo.get(id(p), p) for p in group["params"]]
        entries = list(optimizer.state.items())
        optimizer.state.clear()
        for parameter, state in entries:
            for key, value in state.items():
                state[key] = memo.get(id(value), value)
            optimizer.state[memo.get(id(parameter), parameter)] = state


def _refuse_kinds(optimizer: object, cut: Mapping[str, Tensor]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{_EXPECTED} a torch.optim.Optimizer or several, got {type(optimizer).__name__}"
        )
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            f"{_EXPECTED} state for each parameter, got {kind} that keeps one flat vector of all; "
            f"apply the plan without optimizer and make a new one"
        )
    names = {id(tensor): name for name, tensor in cut.items()}
    for attribute, value in vars(optimizer).items():
        if attribute in ("param_groups", "state", "defaults"):
            continue
        if isinstance(value, Optimizer):
            if value.param_groups is optimizer.param_groups and value.state is optimizer.state:
                continue
            raise TypeError(
                f"{_EXPECTED} one that keeps its state itself, got {kind} that wraps "
                f"{type(value).__name__} in .{attribute}; cut with that one and wrap it again"
            )
        for leaf in pytree.tree_leaves(value):
            if id(leaf) in names:
                raise TypeError(
                    f"{_EXPECTED} one that holds parameters in param_groups and state alone, got "
                    f"{kind} with {names[id(leaf)]} in .{attribute} too; apply the plan without "
                    f"optimizer and make a new one"
                )


def _stays(value: Any) -> bool:
    """Numbers, names and tensors without axes."""
    leaves = pytree.tree_leaves(value)
    return not any(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves)


def _lies_along(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _described(value: Any, parameter: Tensor) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} of tensors"
    if value.shape == parameter.shape:
        return f"of shape {tuple(value.shape)} by coincidence (other parameters' has not theirs)"
    return f"of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}"
