"""Where the channels of a group lie along one axis of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["IndexMap"]


class IndexMap(NamedTuple):
    """Positions of channel ``c`` along an axis: five integers instead of a list of indices.

    Channel ``c`` (``0 <= c < channels``) lies at ``offset + p * period + c * run + r`` for every
    ``0 <= p < repeat`` and ``0 <= r < run``:

    * a plain channel axis: ``run = 1``, ``repeat = 1``;
    * ``[N, C, H, W]`` flattened: ``run = H * W`` (one channel, one interval);
    * ``[N, H, W, C]`` flattened: ``repeat = H * W``, ``period = C`` (one channel, strided);
    * the second part of a concatenation: ``offset`` = size of the first.
    """

    channels: int
    run: int = 1
    offset: int = 0
    repeat: int = 1
    period: int = 0

    def indices(self, keep: Tensor | Sequence[int] | None = None) -> Tensor:
        """Sorted positions (int64, CPU) of the channels ``keep`` (all channels if None).

        Raises ValueError for a channel outside ``[0, channels)``.
        """
        if keep is None:
            channel = torch.arange(self.channels)
        else:
            channel = torch.as_tensor(keep, dtype=torch.int64, device="cpu").reshape(-1)
            if channel.numel() and (int(channel.min()) < 0 or int(channel.max()) >= self.channels):
                raise ValueError(
                    f"IndexMap.indices: argument keep: expected channels in [0, {self.channels}), "
                    f"got values from {int(channel.min())} to {int(channel.max())}"
                )
        period = torch.arange(self.repeat)[:, None, None] * self.period
        run = torch.arange(self.run)[None, None, :]
        positions = self.offset + period + channel[None, :, None] * self.run + run
        return positions.reshape(-1).sort().values

    def view(self, axis: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The places of the channels within an array of the axis' length, to read and to write.

        Returns a view ``[repeat, channels, run]``. Raises IndexError if they reach beyond the axis.
        """
        end = self.offset + (self.repeat - 1) * self.period + self.channels * self.run
        smallest = min(self.channels, self.run, self.repeat, self.offset + 1, self.period + 1)
        if smallest < 1 or end > len(axis):
            raise IndexError(f"{self} does not fit an axis of length {len(axis)}")
        if self.repeat == 1 and self.run == 1:
            return axis[None, self.offset : end, None]
        step = axis.strides[0]
        return np.lib.stride_tricks.as_strided(
            axis[self.offset :],
            (self.repeat, self.channels, self.run),
            (self.period * step, self.run * step, step),
        )

    def to_dict(self) -> dict[str, int]:
        """The five integers by name."""
        return self._asdict()
