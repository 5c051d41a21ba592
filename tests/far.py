"""A second device for tests, without one: tensors that say they are on a GPU and live on the CPU.

What a GPU refuses is refused: operators whose tensors lie on different devices. So code that mixes
devices fails here as it would there; the kernels of a GPU do not run. No gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice.lockstep import _Walk
from infoslice.surgery import PruningPlan

aten = torch.ops.aten
# Operators that take tensors of two devices: copies, and indices on the CPU.
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
# What torch says without CUDA, without its driver, without a device.
_NO_GPU = "not linked with support for cuda", "no NVIDIA driver", "No CUDA GPUs"


class Far(torch.Tensor):
    """``near``: the values."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device="cuda:0"
        )

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"Far({self.near})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.tolist:
            return args[0].near.tolist()
        kwargs = kwargs or {}
        try:
            with torch._C.DisableTorchFunctionSubclass():  # which would make all results Far
                return func(*args, **kwargs)
        except RuntimeError as error:
            if not any(text in str(error) for text in _NO_GPU):
                raise
        # Python's own methods ask for the device before any operator is called.
        checked = _tensors((args, kwargs))
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            checked = _meeting(args)
        _check(checked, func)
        near, named = pytree.tree_map_only(Far, lambda t: t.near, (args, kwargs))
        return pytree.tree_map_only(torch.Tensor, Far, func(*near, **named))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees functions that make tensors on a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Given(TorchFunctionMode):
    """Sees tensors made of Python's numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        made = func in (torch.tensor, torch.as_tensor)
        if made and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"] = "cpu"
            return Far(func(*pytree.tree_map_only(Far, lambda t: t.near, args), **kwargs))
        return func(*args, **kwargs)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _meeting(args: Any) -> list[torch.Tensor]:
    """Of ``(values, indices, ...)`` those that have to be on one device."""
    far = isinstance(args[0], Far)  # indices of the CPU will do there
    return _tensors((args[0], args[2:]) if far else args)


def _check(tensors: list[torch.Tensor], func: Any) -> None:
    if len({isinstance(t, Far) for t in tensors if t.dim() or isinstance(t, Far)}) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, got {func} of "
            f"{[str(t.device) for t in tensors]}"
        )


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors, device = _tensors((args, kwargs)), kwargs.get("device")
    far = any(isinstance(t, Far) for t in tensors)
    if far and func not in _COPIES:
        _check(_meeting(args) if func in _INDEXED else tensors, func)
    if device is not None:
        far, kwargs = torch.device(device).type == "cuda", {**kwargs, "device": torch.device("cpu")}
    elif func is aten.copy_.default:
        far = isinstance(args[0], Far)
    if far and kwargs.get("generator") is not None:  # all that there are are those of the CPU
        raise RuntimeError(f"Expected a 'cuda' device type for generator of {func} but found 'cpu'")
    known = {id(t.near): t for t in tensors if isinstance(t, Far)}
    args, kwargs = pytree.tree_map_only(Far, lambda t: t.near, (args, kwargs))
    found = func(*args, **kwargs)
    if not far:
        return found
    # What is changed in place comes back as the same tensor.
    return pytree.tree_map_only(
        torch.Tensor, lambda t: known[id(t)] if id(t) in known else Far(t), found
    )


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Inside, ``"cuda"`` is such a device. Surgery alone takes place on the CPU."""
    plain = _Walk._run

    def run(walk: _Walk) -> None:  # modes are a thread's own
        with _Mode(), _Given():
            plain(walk)

    cut = PruningPlan.apply

    def apply(self: PruningPlan, model: torch.nn.Module, **options: Any) -> Any:
        found = cut(self, moved(model, lambda t: t.near), **options)
        moved(found.model, Far)
        return found

    with (
        mock.patch.object(_Walk, "_run", run),
        mock.patch.object(PruningPlan, "apply", apply),  # it refuses subclasses of tensors
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "set_device"),
        mock.patch.object(torch.cuda, "synchronize"),
        torch.no_grad(),
        _Mode(),
        _Given(),
    ):
        yield


def moved(model: torch.nn.Module, to: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """The module, all of its tensors replaced."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = to(parameter.detach())
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = to(buffer)
    return model
