"""First and second moments of what a layer reads and writes; they merge exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Joint first and second moments of a layer's input X ``[n, d]`` and output Y ``[n, m]``.

    For a convolution X is the receptive field: ``d = channels * taps``, the taps of one channel
    next to each other, as in ``weight.flatten(1)``; every output position is a sample. ``scatter``
    are sums of centred products, float64. ``mean_y``, ``scatter_xy`` and ``scatter_y`` are empty
    (m = 0) where no output was measured.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    scatter_x: Tensor
    scatter_xy: Tensor
    scatter_y: Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together (Chan, Golub and LeVeque 1983), exact."""
        count = self.count + other.count
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean_x + dx * (other.count / count),
            self.mean_y + dy * (other.count / count),
            self.scatter_x + other.scatter_x + weight * torch.outer(dx, dx),
            self.scatter_xy + other.scatter_xy + weight * torch.outer(dx, dy),
            self.scatter_y + other.scatter_y + weight * torch.outer(dy, dy),
        )

    @property
    def covariance_x(self) -> Tensor:
        """``[d, d]``, divided by n."""
        return self.scatter_x / self.count

    @property
    def covariance_xy(self) -> Tensor:
        """``[d, m]``, divided by n."""
        return self.scatter_xy / self.count

    @property
    def covariance_y(self) -> Tensor:
        """``[m, m]``, divided by n."""
        return self.scatter_y / self.count
