"""Runs a weightless copy of a model once and records the ATen operators it calls."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind

from infoslice.graph.shell import Shell, TraceError, named_tensors
from infoslice.graph.walk import module_path, tensor_shapes

__all__ = ["Capture", "capture"]


@dataclass(frozen=True)
class Capture:
    """``nodes`` in order; ``states``: placeholder -> parameter or buffer name, the first of a tie.

    ``constants``: placeholders of tensors that are no part of the state (plain attributes).
    """

    nodes: tuple[fx.Node, ...]
    states: Mapping[fx.Node, str]
    constants: frozenset[fx.Node]


def capture(shell: Shell, specs: Any) -> Capture:
    """Record ``shell.module(*args, **kwargs)`` for ``specs = (args, kwargs)``.

    Raises TraceError naming the module whose forward failed, where that is known.
    """
    args, kwargs = shell.fakes(specs)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(shell.module, args, kwargs, strict=False)
    except Exception as error:  # whatever a foreign forward raises, under torch's own wrappers
        raise TraceError(_explain(shell.module, error)) from error
    first_name = {id(tensor): name for name, tensor in named_tensors(shell.module)}
    every_name = dict(shell.module.named_parameters(remove_duplicate=False))
    every_name.update(shell.module.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    states: dict[fx.Node, str] = {}
    constants: set[fx.Node] = set()
    nodes = tuple(program.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            spec = kinds.get(node.name)
            if spec is None or spec.kind == InputKind.USER_INPUT:
                continue
            tensor = every_name.get(spec.target or "")
            if tensor is None:
                constants.add(node)
            else:
                states[node] = first_name[id(tensor)]
        _check_sizes(node)
    return Capture(nodes, states, frozenset(constants))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no logged tracebacks: what goes wrong is raised, and some runs are trials."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _check_sizes(node: fx.Node) -> None:
    for shape in tensor_shapes(node.meta.get("val")):
        if not all(type(length) is int for length in shape):
            path = module_path(node)
            place = f"module '{path}'" if path else "its own forward"
            raise TraceError(
                f"trace: argument model: expected sizes that do not depend on tensor values, got "
                f"{node.target} of shape {shape} in {place}; compute it outside the model, or "
                f"prune the submodules before and after it on their own"
            )


def _explain(model: nn.Module, error: BaseException) -> str:
    """The innermost module of ``model`` that was running, the error, and the way round."""
    paths = {id(module): path for path, module in model.named_modules()}
    where: str | None = None
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        frame = chain.__traceback__
        while frame is not None:
            owner = frame.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in paths:
                where = paths[id(owner)]
            frame = frame.tb_next
        chain = chain.__cause__ or chain.__context__
    place = "" if where is None else f" in module '{where}'" if where else " in its own forward"
    text = str(error).strip().splitlines()
    return (
        f"trace: argument model: expected a forward that runs the same operators whatever the "
        f"tensor values, got {type(error).__name__}{place}: {text[0] if text else ''}; make the "
        f"branch independent of tensor values, check that the example inputs fit the model, or "
        f"prune the submodules before and after it on their own"
    )
