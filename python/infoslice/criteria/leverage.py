"""Channels that the others can replace go first, whatever is read from them.

Lin et al. 2025, "MoDeGPT: Modular Decomposition for Large Language Model Compression", ICLR, arXiv
2408.09632: the ridge leverage scores of its MLP part; ``compensation="least_squares"`` is its
Nystrom step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics

__all__ = ["leverage"]


def leverage(
    statistics: GroupStatistics, weights: Sequence[Tensor] = (), *, ridge: float = 1e-2
) -> Tensor:
    """``[H (H + lambda I)^-1]_cc``, H the second moments of what a layer reads, float64 ``[C]``.

    ``lambda = ridge * mean(diag H)``. Between 0 and 1 for each variable; a channel is the sum of
    its variables, several layers are summed. No unit; meant for uniform allocation. Ignores the
    weights. O(d^3).

    Args:
        statistics: of the group.
        weights: not used.
        ridge: see above, > 0.

    Raises:
        ValueError: ``ridge`` is not positive, or too small to invert.
    """
    if not ridge > 0:
        raise ValueError(f"leverage: argument ridge: expected > 0, got {ridge}")
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in statistics.consumers:
        second = layer.second_moments(centred=False)
        penalty = ridge * second.diagonal().mean()
        if not float(penalty) > 0:  # nothing is ever put in
            continue
        regular = second + penalty * torch.eye(len(second), dtype=second.dtype)
        found = ops.precision_diagonal(regular)
        if int(found.info):
            raise ValueError(
                f"leverage: argument ridge: expected second moments of layer '{layer.name}' that "
                f"are positive definite, got leading minor {int(found.info)}; raise ridge"
            )
        # H (H + lambda I)^-1 = I - lambda (H + lambda I)^-1
        total += (1 - penalty * found.diagonal)[layer.variables].sum(1)
    return total
