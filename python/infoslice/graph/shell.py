"""A weightless copy of a model: same modules and code, fake tensors in place of the weights.

Tracing and checking run on such copies, so that no weight is read, nothing of the caller's model
changes, and models on the meta device, frozen models and models larger than memory work.
"""

from __future__ import annotations

import copy
import copyreg
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from infoslice.graph.metadata import fake

__all__ = [
    "Shell", "TensorSpec", "TraceError", "build_shell", "caches", "copy_module", "is_special",
    "named_tensors", "specs_of",
]  # fmt: skip


class TraceError(ValueError):
    """The model cannot be recorded as one fixed sequence of operators."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, dtype, device and strides of an example input: all that tracing needs of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    stride: tuple[int, ...] | None = None

    def doubled(self) -> TensorSpec:
        """Twice as long along the first axis."""
        shape = tuple(2 * n if i == 0 else n for i, n in enumerate(self.shape))
        return TensorSpec(shape, self.dtype, self.device)


@dataclass(frozen=True)
class Shell:
    """A weightless copy and what runs it."""

    module: nn.Module
    mode: FakeTensorMode
    device: torch.device

    def fakes(self, specs: Any) -> Any:
        """The tree ``specs`` with every TensorSpec replaced by a fake tensor."""
        return pytree.tree_map_only(
            TensorSpec,
            lambda s: fake(self.mode, s.shape, s.stride, s.dtype, _real(s.device, self.device)),
            specs,
        )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under their first name; a tied tensor comes once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def caches(model: nn.Module) -> Iterator[tuple[nn.Module, str, dict[Any, Tensor]]]:
    """Tables of tensors that modules compute once and keep (module, attribute, table).

    They are made anew when they are found empty, in the sizes that are then right.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            is_cache = "cache" in name and type(value) is dict and bool(value)
            if is_cache and all(isinstance(item, Tensor) for item in value.values()):
                yield module, name, value


def is_special(tensor: Tensor) -> bool:
    """Sharded, quantised or otherwise more than a block of numbers."""
    plain = type(tensor) in (Tensor, nn.Parameter, FakeTensor)
    return not plain or bool(is_traceable_wrapper_subclass(tensor)) or tensor.is_quantized


def specs_of(inputs: Any) -> Any:
    """The tree ``inputs`` with every tensor replaced by its TensorSpec."""
    return pytree.tree_map_only(
        Tensor,
        lambda t: TensorSpec(tuple(t.shape), t.dtype, str(t.device), tuple(t.stride())),
        inputs,
    )


def build_shell(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    training: bool = False,
) -> Shell:
    """Copy ``model`` in eval mode without its weights; ``shapes``: other sizes by tensor name."""
    shapes = shapes or {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = dict(named_tensors(model))
    devices = (t.device for t in tensors.values() if t.device.type != "meta")
    home = next(devices, torch.device("cpu"))
    # Entries of the memo are what deepcopy puts in place of the originals: nothing is copied.
    memo: dict[int, Any] = {}
    for name, tensor in tensors.items():
        shape = shapes.get(name)
        made = fake(
            mode,
            tuple(tensor.shape) if shape is None else shape,
            None if shape is not None or tensor.layout != torch.strided else tensor.stride(),
            tensor.dtype,
            _real(tensor.device, home),
        )
        if isinstance(tensor, nn.Parameter):
            made._is_param = True  # what nn.Parameter does to it
        memo[id(tensor)] = made
    memo |= {id(cache): {} for _, _, cache in caches(model)}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = fake(
                    mode, tuple(value.shape), None, value.dtype, _real(value.device, home)
                )
    return Shell(copy_module(model, memo).train(training), mode, home)


def copy_module(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy in which the memo's tensors stand for the old ones, which are never copied.

    Raises TraceError for modules that hold what cannot be copied (locks, files, ...).
    """
    try:
        return cast(nn.Module, _copied(model, memo))
    except Exception as error:  # deepcopy runs code of foreign modules
        raise TraceError(
            f"argument model: expected a module that copy.deepcopy can copy, got "
            f"{type(error).__name__}: {error}; drop what cannot be copied, or prune a submodule"
        ) from error


_UNCHANGING = frozenset((
    int, float, bool, str, bytes, complex, type(None), type, types.FunctionType,
    types.BuiltinFunctionType, torch.dtype, torch.device,
))  # fmt: skip


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy``, without its detours for modules and the tables that they consist of."""
    kind = type(value)
    if kind in _UNCHANGING:
        return value
    found = memo.get(id(value))
    if found is not None:
        return found
    if kind is set and not value:
        empty = memo[id(value)] = set()
        return empty
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        for key, item in value.items():
            made[_copied(key, memo)] = _copied(item, memo)
        return made
    if kind is list:
        row: list[Any] = []
        memo[id(value)] = row
        row.extend(_copied(item, memo) for item in value)
        return row
    if isinstance(value, nn.Module) and _copied_as_usual(type(value)):
        module = memo[id(value)] = object.__new__(kind)
        get_state = getattr(value, "__getstate__", None)
        given = vars(value) if get_state is None else get_state()
        module.__setstate__({name: _copied(item, memo) for name, item in given.items()})
        return module
    return copy.deepcopy(value, memo)


def _copied_as_usual(kind: type[nn.Module]) -> bool:
    """Whether deepcopy makes an empty module of that class and hands it a copy of its state."""
    if kind not in _usual:
        special = {
            name for base in kind.__mro__ for name in vars(base) if base not in (object, nn.Module)
        }
        _usual[kind] = kind not in copyreg.dispatch_table and special.isdisjoint((
            "__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__getstate__", "__new__",
            "__reduce__", "__reduce_ex__", "__slots__",
        ))  # fmt: skip
    return _usual[kind]


_usual: weakref.WeakKeyDictionary[type[nn.Module], bool] = weakref.WeakKeyDictionary()


def _real(device: torch.device | str, home: torch.device) -> torch.device:
    """Meta tensors are traced as if they lay with the rest of the model."""
    device = torch.device(device)
    return home if device.type == "meta" else device
