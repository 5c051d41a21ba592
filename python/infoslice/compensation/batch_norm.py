"""Batch-norm statistics of the smaller network, taken anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["restate_"]


@torch.no_grad()
def restate_(norm: _BatchNorm, inputs: Sequence[Tensor]) -> None:
    """Set the running statistics to the mean and variance (divided by n) of what the layer reads.

    Args:
        norm: changed in place; must hold running statistics.
        inputs: batches ``[N, C, ...]`` of what it reads. A channel that the batches show constant
            keeps its recorded variance: nothing is known of its scale.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for x in inputs:
        flat = x.movedim(1, 0).flatten(1)
        own, n = flat.double().mean(1), flat.shape[1]
        spread = (flat.double() - own[:, None]).square().sum(1)
        if count == 0:
            count, mean, scatter = n, own, spread
            continue
        delta = own - mean
        scatter = scatter + spread + delta.square() * (count * n / (count + n))
        mean, count = mean + delta * (n / (count + n)), count + n
    variance = scatter / count
    running_mean = cast(Tensor, norm.running_mean)
    running_var = cast(Tensor, norm.running_var)
    running_mean.copy_(mean)
    running_var.copy_(torch.where(variance > 0, variance, running_var.to(variance)))
