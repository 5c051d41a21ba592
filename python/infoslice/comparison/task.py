"""What is compared on: a network, its evaluation and its inputs; and how a user writes it down."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infoslice.criteria import CRITERIA, Criterion
from infoslice.perturbation import Inputs
from infoslice.selection import Budget

__all__ = ["Task", "criterion_of", "load_task", "ratio_name", "read_ratio", "split"]


@dataclass(frozen=True, eq=False)
class Task:
    """A network and what it is judged by.

    Attributes:
        name: short; names the files.
        model: is not changed.
        example_inputs: as :func:`infoslice.prune` takes them.
        evaluate: of a model (in eval mode, without gradients) -> a number, or several by name, the
            first of which ranks the methods.
        sources: name -> what the network is shown while it is pruned: the name of a perturbation
            (``"matched"``, ``"gaussian"``; see :func:`infoslice.prune`), real inputs, or a function
            ``seed -> inputs``, so that every seed sees a sample of its own.
        ignored_layers: stay whole.
        options: further arguments of every call of :func:`infoslice.prune`, as ``{"samples": 64}``.
        metric: name of the number where ``evaluate`` returns one.
        lower_is_better: metrics of which less is better; of all others more is.
    """

    name: str
    model: nn.Module
    example_inputs: Any
    evaluate: Callable[[nn.Module], float | Mapping[str, float]]
    sources: Mapping[str, Any] = field(default_factory=lambda: {"auto": "auto"})
    ignored_layers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    lower_is_better: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Of the weights and of the inputs given, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        tensors = list(self.model.state_dict().items())
        for name, source in self.sources.items():
            if not isinstance(source, str) and not callable(source):
                tensors.extend((name, tensor) for tensor in Inputs.of(source).tensors())
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def load_task(spec: str) -> Task:
    """The task that a function of a Python file returns: ``"path/to/file.py[:function]"``.

    The function is called without arguments; by default it is ``task``. The folder of the file can
    be imported from, as when the file is run.

    Raises:
        ValueError: no such file or function, or it returns something else.
    """
    path, _, name = spec.rpartition(":") if ".py:" in spec else (spec, "", "task")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"compare: argument task: expected a Python file, got {path!r}")
    if str(file.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(file.parent.resolve()))
    found = importlib.util.spec_from_file_location(file.stem, file)
    if found is None or found.loader is None:
        raise ValueError(f"compare: argument task: expected a Python file, got {path!r}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    task = getattr(module, name)() if hasattr(module, name) else None
    if not isinstance(task, Task):
        got = type(task).__name__ if hasattr(module, name) else "no such function"
        raise ValueError(
            f"compare: argument task: expected {file.name}:{name} to return an "
            f"infoslice.comparison.Task, got {got}"
        )
    return task


def split(given: str) -> list[str]:
    """``"causal:score=marginal,greedy=False,flap"`` to two specifications."""
    parts: list[str] = []
    for part in given.split(","):
        if parts and "=" in part and ":" in parts[-1] and ":" not in part.partition("=")[0]:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def criterion_of(criterion: str | Criterion) -> tuple[str, Criterion]:
    """Name and function. Raises ValueError for a name that is not there or options unreadable."""
    if callable(criterion):
        return str(getattr(criterion, "__name__", type(criterion).__name__)), criterion
    name, _, options = criterion.partition(":")
    if name not in CRITERIA:
        raise ValueError(
            f"compare: argument criteria: expected some of {sorted(CRITERIA)} or functions, got "
            f"{criterion!r}"
        )
    arguments = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals or key not in inspect.signature(CRITERIA[name]).parameters:
            raise ValueError(
                f"compare: argument criteria: expected options like 'name=value' of "
                f"{name}{inspect.signature(CRITERIA[name])}, got {option!r}"
            )
        try:
            arguments[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            arguments[key] = value
    return criterion, partial(CRITERIA[name], **arguments)


def ratio_name(ratio: float | Budget) -> str:
    """``"0.25"`` or ``"macs=60%"``."""
    if isinstance(ratio, Mapping):
        return " ".join(f"{cost}={limit}" for cost, limit in ratio.items())
    return repr(float(ratio))


def read_ratio(given: str) -> float | Budget:
    """The opposite. Raises ValueError for text that is neither."""
    try:
        if "=" not in given:
            return float(given)
        pairs = [part.split("=") for part in given.split()]
        return {cost: limit if limit.endswith("%") else float(limit) for cost, limit in pairs}
    except ValueError:
        raise ValueError(
            f"compare: argument ratios: expected numbers or budgets like 'macs=60%', got {given!r}"
        ) from None
