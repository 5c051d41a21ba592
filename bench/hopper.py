"""The covariance by TMA and wgmma, on torch tensors: no op calls it before a device has run it."""

from __future__ import annotations

import importlib
from typing import Any

import torch

NOT_SUPPORTED = 801  # cudaErrorNotSupported: another device, or a layout that TMA does not take


def module() -> Any:
    """``infoslice._cuda`` where it was built with the Hopper kernels in reach, or None."""
    try:
        cuda = importlib.import_module("infoslice._cuda")
    except ImportError:
        return None
    return cuda if hasattr(cuda, "hopper_covariance") else None


def covariance(x: torch.Tensor, channel_dim: int = -1) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Covariance and mean of bfloat16 or float16; None where this cannot be done."""
    cuda, channel_dim = module(), channel_dim % x.ndim
    assert cuda
    assert x.dtype in (torch.bfloat16, torch.float16)
    variables = (x.shape[channel_dim], x.stride(channel_dim))
    samples = [(x.shape[d], x.stride(d)) for d in range(x.ndim) if d != channel_dim]
    layout = (str(x.dtype).removeprefix("torch."), x.data_ptr(), variables, samples, [])
    cov = torch.empty(variables[0], variables[0], device=x.device)
    mean = torch.empty(variables[0], device=x.device)
    with torch.cuda.device(x.device):
        workspace = torch.empty(cuda.hopper_workspace(*layout), dtype=torch.uint8, device=x.device)
        status = cuda.hopper_covariance(
            *layout, 1, cov.data_ptr(), mean.data_ptr(), workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
    if status == NOT_SUPPORTED:
        return None
    if status:
        raise RuntimeError(f"hopper_covariance: CUDA error {status}")
    return cov, mean


def works() -> bool:
    """Whether this device takes a small call; tells nothing of its result."""
    if not torch.cuda.is_available() or module() is None:
        return False
    return covariance(torch.zeros(64, 64, dtype=torch.bfloat16, device="cuda")) is not None
