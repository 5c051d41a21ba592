"""Layer norms and RMS norms: what they read, brought to the scale that they give it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["noise_at_norms", "normalised", "normalised_layers"]


def normalised_layers(model: nn.Module) -> list[nn.Module]:
    """The layer norms and RMS norms of ``model`` over the last axis of what they read.

    RMS norms are known by the name of their class: libraries bring their own.
    """

    def over_last_axis(module: nn.Module) -> bool:
        if isinstance(module, nn.LayerNorm):
            return len(module.normalized_shape) == 1
        weight = getattr(module, "weight", None)
        return (
            type(module).__name__.endswith("RMSNorm") and weight is not None and weight.dim() == 1
        )

    return [module for module in model.modules() if over_last_axis(module)]


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """z ``[..., C]``: what ``norm`` makes of x before its scale and shift.

    Over the channels of one token z has mean 0 and variance 1 (layer norm), or mean square 1 (RMS
    norm). The mean and variance of a single channel over tokens are free.
    """
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None)) or 1e-6
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + cast(float, eps))


@contextlib.contextmanager
def noise_at_norms(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Let every norm of ``model`` read Gaussian noise in place of what reaches it.

    Its output is then ``scale * z + shift`` with z white: the maximum entropy that the norm leaves.
    Raises ValueError for a model without layer norms and RMS norms.
    """
    norms = normalised_layers(model)
    if not norms:
        raise ValueError(
            "noise_at_norms: argument model: expected layer norms or RMS norms over the last axis, "
            "got none; perturb the input or every layer instead"
        )
    generator = torch.Generator().manual_seed(seed)

    def fresh(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return torch.randn(x.shape, generator=generator).to(x.device, x.dtype), *args[1:]

    hooks = [norm.register_forward_pre_hook(fresh) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
