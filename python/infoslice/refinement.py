"""Local search about a selection: exchange channels while the layers' error falls.

After OSSCAR, Meng, Ibrahim, Behdin, Hazimeh, Ponomareva and Mazumder 2024, "OSSCAR: One-Shot
Structured Pruning in Vision and Language Models with Combinatorial Optimization", ICML, arXiv
2403.12983.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.statistics import Loss, ridged

__all__ = ["swaps"]

_TRIED = 8  # channels that are cheapest to lose, tried one after the other


def swaps(
    statistics: GroupStatistics,
    keep: Tensor,
    *,
    ridge: float = 1e-2,
    max_swaps: int = 100,
    curvature: Loss | None = None,
) -> Tensor:
    """Exchange one kept for one removed channel as long as the least-squares error falls.

    The error is ``E|W X - W' X_S|^2 / E|W X|^2`` for the best W' on the channels S that are kept,
    summed over the layers that read the group; variables of other groups are always there. The
    moments of X are those of :func:`infoslice.criteria.obs`, ``ridge * diag`` included. One
    of the channels cheapest to lose goes, the one that explains most of the rest comes in; both are
    known from the matrix swept on what is kept, which costs O(d (d + m) r) to bring up to date.

    Args:
        statistics: of the group.
        keep: int64, sorted: the selection to begin with.
        ridge: > 0.
        max_swaps: most exchanges made, >= 0.
        curvature: of which loss of the network, see :func:`infoslice.statistics.output_curvature`:
            an error counts by what the loss rises, not relative to what its layer puts out.

    Returns:
        As many channels, sorted; ``keep`` itself if no exchange lowers the error.

    Raises:
        ValueError: an argument out of range.
        NotMeasuredError: the moments of a layer, or the curvature at it, cannot be had.
    """
    if not ridge > 0:
        raise ValueError(f"swaps: argument ridge: expected > 0, got {ridge}")
    if max_swaps < 0:
        raise ValueError(f"swaps: argument max_swaps: expected >= 0, got {max_swaps}")
    kept = torch.zeros(statistics.channels, dtype=torch.bool)
    kept[keep] = True
    if kept.all() or not kept.any():
        return keep
    readers = [layer.remaining() for layer in statistics.consumers]
    layers = [_Swept(layer, kept, ridge, curvature) for layer in readers if _reads(layer)]
    if not layers:
        return keep
    floor = 1e-9 * sum(layer.total for layer in layers)
    for _ in range(max_swaps):
        losses = torch.stack([layer.worth() for layer in layers]).sum(0)
        for out in losses.masked_fill(~kept, torch.inf).argsort()[: min(_TRIED, int(kept.sum()))]:
            for layer in layers:
                layer.sweep(out, -1)
            gains = torch.stack([layer.worth() for layer in layers]).sum(0)
            gains = gains.masked_fill(kept, -torch.inf)
            best = gains.argmax()
            if gains[best] > losses[out] + floor:
                kept[out], kept[best] = False, True
                for layer in layers:
                    layer.sweep(best, 1)
                break
            for layer in layers:
                layer.sweep(out, 1)
        else:
            break
    return kept.nonzero().flatten()


def _reads(layer: LayerStatistics) -> bool:
    """Whether anything that the layer reads makes a difference."""
    h = layer.second_moments(centred=layer.shifts)
    return float(((layer.weight @ h) * layer.weight).sum()) > 0


class _Swept:
    """Moments of X, and of X with Y, swept on the variables K that are kept (Goodnight 1979).

    On K ``a`` is minus the inverse of their moments and ``c`` the refitted weights; elsewhere what
    K leaves unexplained of the moments of X and of X with Y.
    """

    def __init__(
        self, layer: LayerStatistics, kept: Tensor, ridge: float, curvature: Loss | None
    ) -> None:
        h = layer.second_moments(centred=layer.shifts)
        w = layer.weight if curvature is None else layer.weighed(curvature) / 2**0.5
        self.total = float(((w @ h) * w).sum())
        self.a = ridged(h, ridge)
        self.c = self.a @ w.T
        if curvature is None:  # errors count relative to all that the layer puts out, as in obs
            self.c *= self.total**-0.5
            self.total = 1.0
        self.variables = layer.variables
        inside = torch.ones(len(h), dtype=torch.bool)
        inside[layer.variables[~kept].flatten()] = False
        self._sweep(inside.nonzero().flatten(), 1)

    def worth(self) -> Tensor:
        """``[C]``: what losing a kept channel adds to the error, or adding another takes off it."""
        v = self.variables
        blocks, rows = self.a[v[:, :, None], v[:, None, :]], self.c[v]
        worth: Tensor = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)).abs()
        return worth

    def sweep(self, channel: Tensor, sign: int) -> None:
        """Take a channel in (1) or out (-1)."""
        self._sweep(self.variables[channel], sign)

    def _sweep(self, p: Tensor, sign: int) -> None:
        inverse = torch.linalg.inv(self.a[p][:, p])
        rows, across = self.a[p], inverse @ self.c[p]
        to = inverse @ rows
        self.a -= rows.T @ to
        self.c -= rows.T @ across
        self.a[p], self.a[:, p] = sign * to, sign * to.T
        self.a[p[:, None], p] = -inverse
        self.c[p] = sign * across
