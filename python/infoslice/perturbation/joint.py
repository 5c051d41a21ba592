"""Joint moments of several Gaussian vectors, under affine maps and rectification."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from infoslice.perturbation.rectified import rectified, rectified_covariance

__all__ = ["Joint"]

_ROWS = 256  # of a covariance rectified at a time


class Joint:
    """Means ``[D]`` and all covariances of several vectors, by key; float64."""

    def __init__(self) -> None:
        self.mean: dict[Hashable, Tensor] = {}
        self._covariance: dict[tuple[Hashable, Hashable], Tensor] = {}

    def enter(self, key: Hashable, mean: Tensor, covariance: Tensor) -> None:
        """The first vector."""
        self.mean[key], self._covariance[key, key] = mean, covariance

    def covariance(self, a: Hashable, b: Hashable) -> Tensor:
        """``[Da, Db]``."""
        known = self._covariance.get((a, b))
        return self._covariance[b, a].T if known is None else known

    def forget(self, key: Hashable) -> None:
        """Of no further use."""
        del self.mean[key]
        self._covariance = {pair: c for pair, c in self._covariance.items() if key not in pair}

    def affine(
        self, y: Hashable, x: Hashable, linear: Callable[[Tensor], Tensor], offset: Tensor
    ) -> None:
        """Enter ``y = A x + offset``; ``linear`` maps rows ``[n, Dx]`` to ``rows @ A.T``."""
        mean = linear(self.mean[x].unsqueeze(0)).squeeze(0) + offset
        crossed = {v: linear(self.covariance(v, x)).T for v in self.mean}
        self._add(y, mean, linear(crossed[x]), crossed)

    def scale(self, y: Hashable, x: Hashable, factor: Tensor, offset: Tensor) -> None:
        """Enter ``y = factor * x + offset``."""
        self.affine(y, x, lambda rows: rows * factor, offset)

    def add(self, y: Hashable, a: Hashable, b: Hashable, alpha: float) -> None:
        """Enter ``y = a + alpha b``."""
        crossed = {v: self.covariance(a, v) + alpha * self.covariance(b, v) for v in self.mean}
        own = (crossed[a] + alpha * crossed[b]).T
        self._add(y, self.mean[a] + alpha * self.mean[b], own, crossed)

    def rectify(self, y: Hashable, x: Hashable) -> None:
        """Enter ``y = relu(x)`` as if x were Gaussian with all others."""
        old, before = self.mean[x], self.covariance(x, x)
        mean, variance, above = rectified(old, before.diagonal())
        crossed = {v: above.unsqueeze(1) * self.covariance(x, v) for v in self.mean}
        own = torch.empty_like(before)
        for start in range(0, len(own), _ROWS):
            rows, rest = slice(start, start + _ROWS), slice(start, None)
            block = rectified_covariance(
                (old[rows], old[rest]),
                (before.diagonal()[rows], before.diagonal()[rest]),
                before[rows, rest],
            )
            own[rows, rest] = block
            own[rest, rows] = block.T
        own.diagonal().copy_(variance)
        self._add(y, mean, own, crossed)

    def _add(
        self, key: Hashable, mean: Tensor, own: Tensor, crossed: dict[Hashable, Tensor]
    ) -> None:
        self._covariance.update({(key, v): c for v, c in crossed.items()})
        self._covariance[key, key] = own
        self.mean[key] = mean
