"""Runs a weightless copy of a model once and records the ATen operators it calls."""

from __future__ import annotations

import contextlib
import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice.graph.metadata import Results
from infoslice.graph.recording import Node, operator_name, remembered
from infoslice.graph.shell import Shell, TraceError, named_tensors

__all__ = ["Capture", "capture"]


_LEAVES = frozenset((int, float, bool, str, type(None)))
_results = Results()


@dataclass(frozen=True)
class Capture:
    """``nodes`` in order; ``states``: placeholder -> parameter or buffer name, the first of a tie.

    ``constants``: placeholders of tensors that are no part of the state (plain attributes).
    """

    nodes: tuple[Node, ...]
    states: Mapping[Node, str]
    constants: frozenset[Node]


class _Recorder(SchemaCheckMode):
    """Sees every operator as the model calls it, before autograd and before any decomposition.

    torch lets three modes of its own stand there, by their type: this one is the lightest of them
    by name and keeps nothing of it. Recording with torch.export is ten times slower.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.constants: set[Node] = set()
        self.modules: list[str] = [""]
        # By identity: who made a tensor; the tensor is kept, so that no other takes its identity.
        self._made: dict[int, tuple[Tensor, Node]] = {}
        self._memory: dict[int, Node] = {}  # by memory: the first node that lies there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # What is changed in place is another node afterwards.
        given = self._nodes(args), {name: self._nodes(value) for name, value in kwargs.items()}
        _too_few(func, args)
        grouped = func is torch.ops.aten._grouped_mm.default
        result: Any = (
            _grouped_product(*args, **kwargs) if grouped else _results.run(func, args, kwargs)
        )
        node = self._call(func, given[0], given[1], result)
        if isinstance(result, Tensor):
            self._keep(result, node)
        elif isinstance(result, (tuple, list)):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    self._keep(item, self._call(operator.getitem, (node, i), {}, item))
        return result

    def _nodes(self, value: Any) -> Any:
        """``value`` with a Node in place of every tensor."""
        if isinstance(value, Tensor):
            return self.node_of(value)
        if type(value) in (tuple, list):
            return type(value)(map(self._nodes, value))
        if type(value) in _LEAVES:
            return value
        return pytree.tree_map_only(Tensor, self.node_of, value)

    def enter(self, tensor: Tensor) -> Node:
        """A tensor that comes from outside."""
        node = Node("placeholder", value=remembered(tensor))
        self.nodes.append(node)
        self._keep(tensor, node)
        return node

    def leave(self, result: Any) -> None:
        """The end: what the model returns."""
        tensors = [self.node_of(t) for t in _tensors(_results_alone(result))]
        self._append(Node("output", args=(tensors,)))

    def node_of(self, tensor: Tensor) -> Node:
        found = self._made.get(id(tensor))
        if found is not None:
            return found[1]
        first = self._memory.get(_memory_of(tensor))
        if first is None:
            node = self.enter(tensor)
            self.constants.add(node)
            return node
        name = operator_name(first)
        makes = not first.inputs or name.endswith("_like") or name.startswith("aten::new_")
        if first.target is not None and makes and first.value == remembered(tensor):
            return first  # torch hands out a copy of what a factory makes
        # Reached past the dispatcher (``x.data``): an operator without a rule, so all stays whole.
        alias = self._call(tensor_data, (first,), {}, tensor)
        self._keep(tensor, alias)
        return alias

    def _keep(self, tensor: Tensor, node: Node) -> None:
        self._made[id(tensor)] = (tensor, node)
        self._memory.setdefault(_memory_of(tensor), node)

    def _call(self, func: Any, args: Any, kwargs: Any, result: Any) -> Node:
        return self._append(
            Node("call_function", func, args, kwargs, remembered(result), self.modules[-1])
        )

    def _append(self, node: Node) -> Node:
        self.nodes.append(node)
        for used in node.inputs:
            used.users[node] = None
        return node


def _memory_of(tensor: Tensor) -> int:
    """The identity of its memory; torch.func wraps tensors in others that have none."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    memory: int = tensor.untyped_storage()._cdata
    return memory


def _too_few(func: Any, args: Any) -> None:
    """torch says that a number is out of range; say which."""
    if func is torch.ops.aten.topk.default:
        x, count, axis = args[0], args[1], args[2] if len(args) > 2 else -1
        if x.dim() and count > x.shape[axis]:
            raise RuntimeError(f"topk chooses {count} of {x.shape[axis]} entries")


def _grouped_product(x: Tensor, y: Tensor, *_: Any, **__: Any) -> Tensor:
    """x [S, K] times y [E, K, N] in pieces of x: torch's own fake knows bfloat16 alone."""
    for given in (x, y):
        if max(given.stride()[-2:]) * given.element_size() % 16:
            raise RuntimeError(
                f"grouped_mm wants rows of a multiple of 16 bytes, got {tuple(given.shape)} of "
                f"{given.dtype}: keep a multiple of {16 // given.element_size()} channels"
            )
    return x.new_empty((*x.shape[:-1], y.shape[-1]))


def tensor_data() -> None:
    """Stands in a recording for a tensor that shares memory with another, nobody saw how."""


def capture(shell: Shell, specs: Any, forward_fn: Callable[..., Any] | None = None) -> Capture:
    """Record ``shell.module(*args, **kwargs)`` for ``specs = (args, kwargs)``.

    Or ``forward_fn(shell.module, *args, **kwargs)``, where the model is used in another way.

    Raises TraceError naming the module whose forward failed, where that is known.
    """
    args, kwargs = shell.fakes(specs)
    recorder = _Recorder()
    states = {recorder.enter(tensor): name for name, tensor in named_tensors(shell.module)}
    for tensor in _tensors((args, kwargs)):
        recorder.enter(tensor)
    try:
        with (
            _paths(shell.module, recorder.modules),
            _as_exported(),
            shell.mode,
            enable_python_dispatcher(),
            recorder,
        ):
            result = (forward_fn or nn.Module.__call__)(shell.module, *args, **kwargs)
    except DynamicOutputShapeException as error:
        place = f"module '{recorder.modules[-1]}'" if recorder.modules[-1] else "its own forward"
        raise TraceError(
            f"trace: argument model: expected sizes that do not depend on tensor values, got "
            f"{error} in {place}; compute it outside the model, or prune the submodules before and "
            f"after it on their own"
        ) from error
    except Exception as error:  # whatever a foreign forward raises, under torch's own wrappers
        raise TraceError(_explain(recorder.modules[-1], error)) from error
    recorder.leave(result)
    return Capture(tuple(recorder.nodes), states, frozenset(recorder.constants))


# What models of transformers return beside their results without being asked: states on the way.
_STATES = frozenset(
    ("past_key_values", "encoder_last_hidden_state", "text_model_output", "vision_model_output")
)


def _results_alone(result: Any) -> Any:
    """The output without such states, if anything else is in it."""
    if isinstance(result, Mapping) and not _STATES.issuperset(result):
        return [value for name, value in result.items() if name not in _STATES]
    return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Tensors in a tree, and in the attributes of objects that torch cannot take apart.

    A cache of keys and values belongs to the model: it is made and read by the model alone.
    """
    for leaf in pytree.tree_leaves(tree, is_leaf=_is_cache):
        if isinstance(leaf, Tensor):
            yield leaf
        elif (
            hasattr(leaf, "__dict__")
            and not isinstance(leaf, (type, nn.Module))
            and not _is_cache(leaf)
        ):
            yield from _tensors(vars(leaf))


def _is_cache(item: Any) -> bool:
    """As the caches of transformers are: objects that know how many positions they have seen."""
    return callable(getattr(item, "get_seq_length", None))


@contextlib.contextmanager
def _paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the paths of the modules that run on ``stack``; it is left as it was when one fails."""
    handles = []
    for path, module in model.named_modules():

        def enter(*_: Any, path: str = path) -> None:
            stack.append(path)

        def leave(*_: Any, path: str = path) -> None:
            while stack.pop() != path:  # those above it failed, and were let fail
                pass

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _as_exported() -> Iterator[None]:
    """No gradients, no warnings, no logged tracebacks: what goes wrong is raised.

    Attention of torch runs its plain code rather than a fused kernel of another form, and functions
    of transformers that remember their results for the whole process do not remember fakes.
    """
    remembering = sys.modules.get("transformers.pytorch_utils")
    names: dict[str, Any] = {} if remembering is None else vars(remembering)
    compiling = names.get("is_torchdynamo_compiling")
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, fused = logger.disabled, torch.backends.mha.get_fastpath_enabled()
    logger.disabled = True
    torch.backends.mha.set_fastpath_enabled(False)
    if compiling is not None:
        names["is_torchdynamo_compiling"] = lambda: True
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
        torch.backends.mha.set_fastpath_enabled(fused)
        if compiling is not None:
            names["is_torchdynamo_compiling"] = compiling


def _explain(path: str, error: BaseException) -> str:
    """The innermost module that was running, the error, and the way round."""
    place = f" in module '{path}'" if path else " in its own forward"
    text = str(error).strip().splitlines()
    return (
        f"trace: argument model: expected a forward that runs the same operators whatever the "
        f"tensor values, got {type(error).__name__}{place}: {text[0] if text else ''}; make the "
        f"branch independent of tensor values, check that the example inputs fit the model, or "
        f"prune the submodules before and after it on their own"
    )
