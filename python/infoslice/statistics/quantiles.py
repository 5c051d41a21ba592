"""Ranks of streamed values in bounded memory."""

from __future__ import annotations

import random
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["QuantileSketch"]


class QuantileSketch:
    """Ranks among all values ever added, for many channels at once, without keeping them.

    After Karnin, Lang and Liberty 2016: values wait on levels, one on level l stands for 2^l of
    them. A level of more than ``size`` is sorted, and every other value of it (the odd or the even
    ones, by lot) moves one level up. Up to ``size`` values nothing is thrown away and ranks are
    exact. Beyond, a rank among n errs by at most ``n (1 + log2(n / size)) / size``, with a standard
    deviation of at most ``1.5 n / size``. Zeros are counted on their own, and ranks at zero are
    exact whatever n is. Memory: ``size (1 + log2(n / size))`` values for a channel.

    Attributes:
        count: n, values of each channel.
        zeros: int64 ``[C]``, how many are exactly 0.
        negatives: int64 ``[C]``.
    """

    def __init__(self, channels: int, *, size: int = 1024, seed: int = 0) -> None:
        if size < 2:
            raise ValueError(f"QuantileSketch: argument size: expected at least 2, got {size}")
        self.size, self.count = size, 0
        self.zeros = torch.zeros(channels, dtype=torch.int64)
        self.negatives = torch.zeros(channels, dtype=torch.int64)
        self._levels: list[Tensor] = []
        self._lots = random.Random(seed)

    def add(self, values: Tensor) -> None:
        """``values`` ``[C, n]`` of floating point. Raises ValueError for NaN and infinities."""
        if not bool(values.isfinite().all()):
            raise ValueError(
                "QuantileSketch: argument values: expected finite numbers, got NaN or infinity"
            )
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        self.count += values.shape[1]
        self.zeros = self.zeros.to(values.device) + (values == 0).sum(1)
        self.negatives = self.negatives.to(values.device) + (values < 0).sum(1)
        self._put(values, 0)
        self._compact()

    def merge(self, other: QuantileSketch) -> QuantileSketch:
        """A new sketch of the values of both; the smaller ``size`` bounds its errors."""
        size, seed = min(self.size, other.size), self.count + other.count
        merged = QuantileSketch(len(self.zeros), size=size, seed=seed)
        merged.count = self.count + other.count
        merged.zeros = self.zeros + other.zeros.to(self.zeros.device)
        merged.negatives = self.negatives + other.negatives.to(self.negatives.device)
        for sketch in (self, other):
            for level, values in enumerate(sketch._levels):
                merged._put(values, level)
        merged._compact()
        return merged

    def _put(self, values: Tensor, level: int) -> None:
        self.__dict__.pop("_table", None)
        while len(self._levels) <= level:
            self._levels.append(values[:, :0])
        self._levels[level] = torch.cat([self._levels[level], values], 1)

    def _compact(self) -> None:
        level = 0
        while level < len(self._levels):
            width = self._levels[level].shape[1]
            if width > self.size:
                # One of an odd number stays behind: all that stands for something still does.
                even = self._levels[level][:, : width - width % 2].sort(1).values
                self._levels[level] = self._levels[level][:, width - width % 2 :]
                self._put(even[:, self._lots.getrandbits(1) :: 2], level + 1)
            level += 1

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Values ``[C, K]`` in order, and how many of all are before each, ``[C, K + 1]``."""
        kept = torch.cat(self._levels, 1)
        weights = torch.cat([torch.full_like(v, 2**i) for i, v in enumerate(self._levels)], 1)
        values, order = kept.sort(1)
        before = weights.double().gather(1, order).cumsum(1)
        return values, torch.nn.functional.pad(before, (1, 0))

    def ranks(self, values: Tensor) -> Tensor:
        """Mid-ranks of ``values`` ``[C, n]`` among all that were added, float64, in 0.5 to n + 0.5.

        A value between two that were added gets the rank between; of ties, each gets the mean of
        their ranks: those of zero are ``negatives + (zeros + 1) / 2``, exactly.
        """
        table, before = self._table
        values = values.to(table.dtype).contiguous()
        low = before.gather(1, torch.searchsorted(table, values))
        high = before.gather(1, torch.searchsorted(table, values, right=True))
        # What the sketch has on either side of zero is stretched to what was counted there.
        zero = torch.zeros_like(table[:, :1])
        below = before.gather(1, torch.searchsorted(table, zero))
        upto = before.gather(1, torch.searchsorted(table, zero, right=True))
        negatives, zeros = self.negatives[:, None].double(), self.zeros[:, None].double()
        positives = self.count - negatives - zeros
        sketched = (low + high) / 2
        left = sketched * negatives / below.clamp_min(1)
        right = negatives + zeros + (sketched - upto) * positives / (self.count - upto).clamp_min(1)
        middle = negatives + zeros / 2
        return 0.5 + torch.where(values < 0, left, torch.where(values > 0, right, middle))

    def largest_ties(self) -> Tensor:
        """Share of the most frequent value of every channel, float64 ``[C]``; of zeros exactly.

        Of other values as the sketch has it: a share below ``2 / size`` need not be a tie.
        """
        table, before = self._table
        low = before.gather(1, torch.searchsorted(table, table))
        high = before.gather(1, torch.searchsorted(table, table, right=True))
        most = (high - low).masked_fill(table == 0, 0).amax(1)
        return torch.maximum(most, self.zeros.double()) / self.count
