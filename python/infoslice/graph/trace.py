"""``trace``: which channels of a model hang together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import infoslice.graph.rules_attention
import infoslice.graph.rules_elementwise
import infoslice.graph.rules_experts
import infoslice.graph.rules_layers
import infoslice.graph.rules_reductions
import infoslice.graph.rules_shape  # noqa: F401  (importing registers the rules)
from infoslice.graph.capture import Capture, capture
from infoslice.graph.channel_graph import ChannelGraph, Signature
from infoslice.graph.check import failing_groups
from infoslice.graph.dims import Atom, pin
from infoslice.graph.groups import build_groups, left_whole
from infoslice.graph.recording import no_garbage_collection
from infoslice.graph.shell import (
    Shell,
    TensorSpec,
    TraceError,
    build_shell,
    is_special,
    named_tensors,
    specs_of,
)
from infoslice.graph.walk import Result, Value, Walk

__all__ = ["refuse_wrapped", "trace", "trace_specs"]


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    forward_fn: Callable[..., Any] | None = None,
    ignored_layers: Iterable[str | nn.Module] = (),
) -> ChannelGraph:
    """Find the groups of channels of ``model`` that can only be removed together.

    The model runs once in eval mode on fake tensors: no weight is read, nothing of it changes, and
    it may lie on the meta device. Forward hooks of the model run too, on the fakes. Every operator
    says which axes of its arguments and results are the same channels; an operator that is not
    understood leaves whatever it touches whole. Model inputs and outputs are left whole always.
    Layers called in training mode only (auxiliary heads) are left whole with all they read.

    Args:
        model: any module; layers used twice and tied weights are understood.
        example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword
            arguments. Only shapes, dtypes and devices are read.
        example_kwargs: further keyword arguments.
        forward_fn: called as ``forward_fn(model, *args, **kwargs)`` in place of the model, where
            it is used in another way (``Model.encode``, or several calls whose results matter).
            It may be called on copies of the model and must use the one that it is given.
        ignored_layers: module paths or modules whose weights stay whole.

    Raises:
        TraceError: (a ValueError) the forward depends on tensor values, or fails.
        TypeError: ``model`` is no module, or one of a kind that must be unwrapped first.
        ValueError: an ignored layer is no module of the model.
    """
    specs = specs_of(_arguments(model, example_inputs, example_kwargs))
    return trace_specs(model, specs, ignored_layers, forward_fn)


@no_garbage_collection()
def trace_specs(
    model: nn.Module,
    specs: Any,
    ignored_layers: Iterable[str | nn.Module] = (),
    forward_fn: Callable[..., Any] | None = None,
) -> ChannelGraph:
    """The same for ``specs = (args, kwargs)`` with a TensorSpec in place of every tensor."""
    refused = _refused(model, ignored_layers)
    shell = build_shell(model)
    captured = capture(shell, specs, forward_fn)
    walk = _walk(shell, captured, refused)
    _pin_what_training_reads(walk, model, specs, refused, forward_fn)
    graph = _graph(walk, captured, shell, specs, refused, forward_fn)
    if walk.baked:
        # Numbers reached an operator. A size that the code computed from its input follows a cut,
        # one that it spells out does not, and a scale should stay: running a smaller copy tells.
        failing = failing_groups(graph, shell.module, _fewer_channels(graph))
        if walk.tie({graph.signature.atoms[name] for name in failing}):
            graph = _graph(walk, captured, shell, specs, refused, forward_fn)
            failing = failing_groups(graph, shell.module, _fewer_channels(graph))
        for name, failure in failing.items():
            pin(graph.signature.atoms[name], f"a smaller copy does not run alike: {failure}")
        graph = _graph(walk, captured, shell, specs, refused, forward_fn)
    return graph


def _fewer_channels(graph: ChannelGraph) -> dict[str, Tensor]:
    """A few channels less of every group, and of groups of one size not equally many.

    Code that takes the size of one group for that of another fails then.
    """
    seen: dict[int, int] = {}
    keep: dict[str, Tensor] = {}
    for group in graph.prunable:
        nth = seen[group.channels] = seen.get(group.channels, -1) + 1
        removed = group.step * (1 + nth % max((group.channels - 1) // group.step, 1))
        keep[group.name] = torch.arange(max(group.channels - removed, 1))
    return keep


def _graph(
    walk: Walk,
    captured: Capture,
    shell: Shell,
    specs: Any,
    refused: Mapping[str, str],
    forward_fn: Callable[..., Any] | None,
) -> ChannelGraph:
    groups, named = build_groups(walk, shell.module)
    dims = {node: _dims(result) for node, result in walk.values.items()}
    weights = {name: value.dims for name, value in walk.weights.items()}
    parameters = frozenset(name for name, _ in shell.module.named_parameters())
    return ChannelGraph(
        groups=groups,
        layers=tuple(walk.layers),
        whole=left_whole(walk, groups, shell.module, refused),
        tensors={n: (tuple(t.shape), t.dtype) for n, t in named_tensors(shell.module)},
        inputs=specs,
        signature=Signature(captured.nodes, dims, dict(walk.starts), named, weights, parameters),
        forward_fn=forward_fn,
    )


def _dims(result: Result) -> tuple[Any, ...]:
    values = result if isinstance(result, tuple) else (result,)
    return tuple(value.dims for value in values if value is not None)


def _walk(shell: Shell, captured: Capture, refused: Mapping[str, str]) -> Walk:
    modules: dict[int, list[str]] = {}
    for table in (shell.module.named_parameters, shell.module.named_buffers):
        for name, tensor in table(remove_duplicate=False):
            modules.setdefault(id(tensor), []).append(name.rpartition(".")[0])
    tensors = dict(named_tensors(shell.module))

    def module_of(tensor: str, path: str) -> str:
        """The module that calls, if the tensor is its own, else the first that holds it."""
        owners = modules[id(tensors[tensor])]
        return path if path in owners else owners[0]

    walk = Walk(module_of)
    _enter(walk, captured, tensors, refused)
    walk.run(captured.nodes)
    return walk


def _enter(
    walk: Walk, captured: Capture, tensors: Mapping[str, Tensor], refused: Mapping[str, str]
) -> None:
    """Give the placeholders of a recording their values; weights keep those they have."""
    for node in captured.nodes:
        if node.op != "placeholder":
            continue
        state = captured.states.get(node)
        shape = getattr(node.value, "shape", None)
        if state is not None:
            if state not in walk.weights:
                sizes = tensors[state].shape
                dims = tuple(Atom(n, refused.get(state)) for n in sizes)
                walk.weights[state] = Value(dims, state, tuple(range(len(sizes))), (state,))
            walk.values[node] = walk.weights[state]
        elif shape is not None:
            constant = node in captured.constants
            reason = "constant tensor" if constant else "model input"
            dims = tuple(Atom(n, reason) for n in shape)
            walk.values[node] = Value(dims, sources=() if constant else None)


def _pin_what_training_reads(
    walk: Walk,
    model: nn.Module,
    specs: Any,
    refused: Mapping[str, str],
    forward_fn: Callable[..., Any] | None,
) -> None:
    """Leave whole what layers read that are called in training mode only (auxiliary heads).

    They would break in training if their inputs shrank, and no run in eval mode guards them.
    """
    unseen = {n for n, _ in named_tensors(model) if n.rpartition(".")[0] not in walk.layers}
    if not unseen:
        return
    shell = build_shell(model, training=True)
    # Batch norm refuses to train on one value per channel; then a batch of two may do.
    doubled = pytree.tree_map_only(TensorSpec, TensorSpec.doubled, specs)
    for tried in (specs, doubled):
        with contextlib.suppress(TraceError):
            captured = capture(shell, tried, forward_fn)
            break
    else:
        return  # such a forward cannot be followed; ``whole`` names the layers not called
    training = Walk(walk.module_of, weights=walk.weights)
    _enter(training, captured, dict(named_tensors(shell.module)), refused)
    training.run(captured.nodes)
    for use in training.uses:
        if use.module not in walk.layers and use.role == "in":
            dim = walk.weights[use.tensor].dims[use.axis]
            pin(dim, f"'{use.module}' reads it in training mode only")


def _arguments(
    model: object, example_inputs: Any, example_kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"trace: argument model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    refuse_wrapped("trace", model)
    kwargs = dict(example_kwargs or {})
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), kwargs
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), kwargs
    if isinstance(example_inputs, Mapping):
        both = sorted(set(example_inputs) & set(kwargs))
        if both:
            raise ValueError(f"trace: arguments example_inputs and example_kwargs both give {both}")
        return (), {**example_inputs, **kwargs}
    raise TypeError(
        f"trace: argument example_inputs: expected a tensor, a tuple or list of arguments or a "
        f"dict of keyword arguments, got {type(example_inputs).__name__}"
    )


_WRAPPERS = {
    "OptimizedModule": "pass model._orig_mod",
    "DataParallel": "pass model.module",
    "DistributedDataParallel": "pass model.module, and wrap anew what was cut in place",
    "FullyShardedDataParallel": "trace and cut the model before it is sharded",
    "FSDPModule": "trace and cut the model before fully_shard",
    "ScriptModule": "trace and cut the module that was scripted",
}


def refuse_wrapped(op: str, model: nn.Module) -> None:
    """Raise TypeError for modules that must be unwrapped first, saying how."""
    for kind in type(model).__mro__:
        if kind.__name__ in _WRAPPERS:
            raise TypeError(
                f"{op}: argument model: expected a plain module, got {kind.__name__}; "
                f"{_WRAPPERS[kind.__name__]}"
            )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{op}: argument model: expected modules that run Python code, got '{path}' "
                f"that is scripted; put the original module back, and script it after the cut"
            )


def _refused(model: nn.Module, ignored_layers: Iterable[str | nn.Module]) -> dict[str, str]:
    """Tensor name -> reason, for tensors whose channels must stay."""
    if isinstance(ignored_layers, (str, nn.Module)):
        raise TypeError(
            f"trace: argument ignored_layers: expected a sequence of module paths or modules, got "
            f"{type(ignored_layers).__name__}"
        )
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False)}
    ignored: list[nn.Module] = []
    for layer in ignored_layers:
        module = paths.get(layer) if isinstance(layer, str) else layer
        if module is None or not any(module is known for known in paths.values()):
            raise ValueError(
                f"trace: argument ignored_layers: expected modules of the model, got {layer!r}"
            )
        ignored.append(module)
    left = {id(t) for module in ignored for _, t in named_tensors(module)}
    refused: dict[str, str] = {}
    memory: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        if torch.nn.parameter.is_lazy(tensor):
            raise TraceError(
                f"trace: argument model: expected initialised parameters, got {name} of a lazy "
                f"module; run the model once first"
            )
        if id(tensor) in left:
            refused[name] = "ignored by the caller"
        elif ".parametrizations." in f".{name}":
            refused[name] = (
                "parametrised: torch.nn.utils.parametrize.remove_parametrizations first, register "
                "it again afterwards"
            )
        elif is_special(tensor):
            refused[name] = "sharded or quantised parameter"
        elif tensor.layout != torch.strided:
            refused[name] = "sparse parameter"
        else:
            # The address of the storage object: meta tensors have one too, and no data.
            twin = memory.setdefault(tensor.untyped_storage()._cdata, name)
            if twin != name:
                refused[name] = refused[twin] = (
                    f"'{name}' and '{twin}' share memory without being one parameter"
                )
    return refused
