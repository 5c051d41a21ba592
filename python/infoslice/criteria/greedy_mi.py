"""Channels are taken in, one by one, that tell most about the outputs given those before them.

The forward counterpart of the greedy conditional score of :func:`infoslice.criteria.causal`. Greedy
selection by information: Krause, Singh and Guestrin 2008, JMLR 9; as two pivoted Cholesky
factorisations: Chen, Zhang and Zhou 2018, NeurIPS, arXiv 1709.05135.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics
from infoslice.selection import increasing
from infoslice.statistics import Loss

__all__ = ["greedy_mi"]


def greedy_mi(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    noise_variance: float = 1.0,
    ridge: float = 1e-4,
    curvature: Loss | None = None,
) -> Tensor:
    """``I(X_c; Y + N | X_S)`` in nats when channel c is taken in, float64 ``[C]``.

    S are the channels taken in before, Y is a layer's output, standardised, and N noise, see
    :class:`infoslice.group_statistics.Joint`; the sum over the layers that read the group, of which
    only the variables of the group count. The score is at most that of the channel before it, so
    that a ranking by score is the order of selection. For large noise the gains become those of
    least squares (what a channel adds to the explained variance of Y), for small noise volumes.

    O(n (C r)^2) with n = sum of d + m over the layers, see
    :func:`infoslice.ops.forward_selection`. Takes activations for Gaussian.

    Args:
        statistics: of the group.
        weights: not used.
        noise_variance: variance of N on each output, relative to the total variance of the layer's
            outputs, > 0.
        ridge: added to the variances of X, relative to each, see
            :func:`infoslice.statistics.ridged`, >= 0.
        curvature: of which loss of the network, as for :func:`infoslice.criteria.causal`.

    Raises:
        ValueError: an argument out of range; or a covariance that is not positive definite.
    """
    if not noise_variance > 0:
        raise ValueError(f"greedy_mi: argument noise_variance: expected > 0, got {noise_variance}")
    if not ridge >= 0:
        raise ValueError(f"greedy_mi: argument ridge: expected >= 0, got {ridge}")
    live = torch.zeros(statistics.channels, dtype=torch.bool)
    blocks: list[Tensor] = []
    x: list[Tensor] = []
    y: list[int] = []
    start = 0
    for layer in statistics.consumers:
        joint = layer.joint(noise_variance, ridge, curvature)
        if not joint.outputs:
            continue
        live |= layer.live_channels()
        blocks.append(joint.covariance)
        x.append(layer.variables + start)
        y.extend(range(start + joint.inputs, start + len(joint.covariance)))
        start += len(joint.covariance)
    scores = torch.zeros(statistics.channels, dtype=torch.float64)
    channels = live.nonzero().flatten()
    if not len(channels):
        return scores
    # Layers are blocks without a covariance between them: their information adds up.
    variables = torch.cat(x, 1)[channels]
    together: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    order, gains, info = ops.forward_selection(
        together, variables.flatten().tolist(), y, len(channels),
        group_size=variables.shape[1],
    )  # fmt: skip
    if bool(info):
        raise ValueError(
            f"greedy_mi: argument ridge: expected a positive definite covariance for group "
            f"'{statistics.name}', got a singular one at step {int(info)}; raise ridge or the "
            f"number of samples"
        )
    scores[channels[order.flip(0)]] = increasing(gains.flip(0))
    return scores
