"""Channels go whose loss the others make up for best: structured Optimal Brain Surgeon.

Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models",
NeurIPS, arXiv 2302.04089, after Hassibi and Stork 1993.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice import ops
from infoslice.criteria.causal import increasing
from infoslice.group_statistics import GroupStatistics

__all__ = ["obs"]


def obs(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    greedy: bool = True,
    ridge: float = 1e-2,
) -> Tensor:
    """Growth of the squared error of the layers that read the group, float64 ``[C]``.

    With W a layer, X its input and H the second moments of X with ``ridge * mean(diag H)`` added to
    the diagonal, the error ``E|W X - W' X_S|^2`` of the best W' on the channels left grows by ::

        tr(W_c ([H^-1]_cc)^-1 W_c')

    when channel c goes. H is centred where the layer can shift its output (it has a bias, or a
    batch norm alone behind it). Summed over the layers that read the group;
    0 for a channel none of whose variables is ever put in.

    ``greedy``: one after the other, each loss given the channels gone before; the score is at least
    that of the channel before it, so that a ranking by score is the order of removal. Else all from
    the full H at once. In squared units of the outputs: compares within a group; for a choice
    between groups :func:`infoslice.criteria.causal` has the same ranking in nats.

    O((C r)^3) for r variables per channel, see :func:`infoslice.ops.obs_elimination`.

    Args:
        statistics: of the group.
        weights: not used.
        greedy: see above.
        ridge: see above, > 0.

    Raises:
        ValueError: ``ridge`` is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"obs: argument ridge: expected > 0, got {ridge}")
    live = torch.zeros(statistics.channels, dtype=torch.bool)
    precision: list[Tensor] = []
    gram: list[Tensor] = []
    sizes: list[int] = []
    for layer in statistics.consumers:
        h = layer.second_moments(centred=layer.shifts)
        penalty = ridge * h.diagonal().mean()
        if not float(penalty) > 0:  # nothing varies, so nothing is lost
            continue
        live |= (h.diagonal()[layer.variables] > 0).any(1)
        h = h + penalty * torch.eye(len(h), dtype=h.dtype)
        own = layer.variables.flatten()
        precision.append(torch.cholesky_inverse(torch.linalg.cholesky(h))[own][:, own])
        w = layer.weight[:, own]
        gram.append(w.T @ w)
        sizes.append(layer.variables.shape[1])
    scores = torch.zeros(statistics.channels, dtype=torch.float64)
    if greedy and sizes:
        dead = (~live).nonzero().flatten()
        order, losses, info = ops.obs_elimination(
            precision, gram, statistics.channels - len(dead), group_size=sizes, keep=dead
        )
        if bool(info):
            raise ValueError(
                f"obs: argument ridge: expected second moments that stay positive definite, got a "
                f"singular block at step {int(info)} of group '{statistics.name}'; raise ridge or "
                f"the number of samples"
            )
        scores[order] = increasing(losses)
        return scores
    for p, g, size in zip(precision, gram, sizes, strict=True):
        blocks = [
            m.view(statistics.channels, size, statistics.channels, size).diagonal(dim1=0, dim2=2)
            for m in (p, g)
        ]
        p_cc, g_cc = (b.permute(2, 0, 1) for b in blocks)
        scores += torch.linalg.solve(p_cc, g_cc).diagonal(dim1=1, dim2=2).sum(1)
    return scores * live
