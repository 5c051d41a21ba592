"""The native modules: loads ``_core`` and defines its ops in torch's namespace ``infoslice``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

try:
    from infoslice import _core
except ImportError as error:
    raise ImportError(
        "infoslice: the native module infoslice._core is missing or was built for another Python "
        f"({error}); build it in the source directory: pip install -e ."
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "BuildInfo",
    "T",
    "build_info",
    "core",
    "records_gradient",
    "refuse_grad",
    "register_fake",
    "torch_op",
]

_level = os.environ.get("INFOSLICE_CPU_LEVEL", "v4")
if _level not in ("baseline", "v3", "v4"):
    raise ValueError(
        f"infoslice: environment variable INFOSLICE_CPU_LEVEL: expected baseline, v3 or v4, got "
        f"{_level!r}"
    )

#: What an op takes is what it gives: NumPy arrays or torch tensors.
T = TypeVar("T", torch.Tensor, NDArray[Any])

core = _core
core.register_torch(os.path.join(os.path.dirname(torch.__file__), "lib"), torch.__version__)


def torch_op(name: str) -> Callable[..., Any]:
    """The torch operator ``infoslice::name``; an argument of a wrong type raises TypeError."""
    op: Callable[..., Any] = getattr(torch.ops.infoslice, name).default

    def call(*args: Any) -> Any:
        try:
            return op(*args)
        except RuntimeError as error:  # torch says so before the op sees the arguments
            refusal = re.match(
                r"infoslice::\w+\(\) Expected a value of type '(.+)' for argument '(\w+)' "
                r"but instead found type '(.+)'\.",
                str(error),
            )
            if refusal is None:
                raise
            expected, argument, got = refusal.groups()
        if got == expected:  # an int of more than 64 bits
            raise ValueError(
                f"{name}: {argument}: expected {expected} of 64 bits, got a larger one"
            )
        raise TypeError(f"{name}: {argument}: expected {expected}, got {got}")

    return call


def register_fake(name: str) -> Callable[[F], F]:
    """``torch.library.register_fake`` for ``infoslice::name``, typed."""
    decorator: Callable[[F], F] = torch.library.register_fake(f"infoslice::{name}")
    return decorator


def contiguous_on_cuda(x: Any) -> Any:
    """The copy that a CUDA kernel without strides needs; a CPU host function makes its own."""
    return x.contiguous() if isinstance(x, torch.Tensor) and x.is_cuda else x


_unpack_dual: Callable[..., Any] = forward_ad.unpack_dual


def records_gradient(x: torch.Tensor) -> bool:
    """Whether autograd follows ``x`` now, backward or forward.

    The native operators are not known to autograd: a wrapper takes its ``autograd.Function`` when
    this is true (which raises in forward mode), and else the plain operator, several microseconds
    cheaper.
    """
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0


def refuse_grad(op: str, **tensors: object) -> None:
    """Raise where autograd would need a gradient that ``op`` does not define.

    Raises:
        RuntimeError: a tensor requires grad while gradients are recorded, or is a dual tensor.
    """
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor) or not records_gradient(x):
            continue
        if x.requires_grad or _unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{op}: {name}: expected a tensor without gradient, got one that requires grad; "
                f"{op} defines none: pass {name}.detach() or use torch.no_grad()"
            )


class BuildInfo(TypedDict):
    """What ``build_info`` tells."""

    version: str
    compiler: str
    compiler_flags: str
    cpu_levels: list[str]
    cpu_level: str
    cuda: bool
    cuda_architectures: list[str]
    ops: list[str]
    torch: str
    numpy: str


def build_info() -> BuildInfo:
    """What was compiled, and what was chosen on this machine.

    Returns:
        ``version`` of infoslice; ``compiler`` and ``compiler_flags`` of the CPU kernels;
        ``cpu_levels`` compiled and the ``cpu_level`` in use; whether the CUDA kernels were built
        (``cuda``) and for which ``cuda_architectures``; the native ``ops``; the versions of
        ``torch`` and ``numpy`` in use.
    """
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    return cast("BuildInfo", {**core.build_info(), **versions})
