"""Channels in random order: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics

__all__ = ["random"]


def random(statistics: GroupStatistics, weights: Sequence[Tensor], *, seed: int = 0) -> Tensor:
    """Uniform scores on [0, 1), float64 ``[C]``; each group has a stream of its own."""
    stream = zlib.crc32(statistics.name.encode()) ^ seed
    generator = torch.Generator().manual_seed(stream)
    # On the CPU, wherever the network is: the same numbers.
    return torch.rand(statistics.channels, generator=generator, dtype=torch.float64, device="cpu")
