"""Channels go whose loss the others make up for best: structured Optimal Brain Surgeon.

Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models",
NeurIPS, arXiv 2302.04089, after Hassibi and Stork 1993.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.precision import gram_blocks, inverse, own_part, precision_blocks
from infoslice.selection import increasing
from infoslice.statistics import Loss, ridged

__all__ = ["obs"]


def obs(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    greedy: bool = True,
    ridge: float = 1e-2,
    centred: bool | None = None,
    relative: bool = True,
    curvature: Loss | None = None,
) -> Tensor:
    """Growth of the squared error of the layers that read the group, float64 ``[C]``.

    With W a layer, X its input and H the second moments of X with ``ridge * diag(H)`` added to
    the diagonal, the error ``E|W X - W' X_S|^2`` of the best W' on the channels left grows by ::

        tr(W_c ([H^-1]_cc)^-1 W_c')

    when channel c goes. Whatever else the layer reads stays and helps. Divided by the total
    ``E|W X|^2`` of the layer, so that layers count alike, and summed over those that read the
    group; 0 for a channel none of whose variables is ever put in.

    ``greedy``: one after the other, each loss given the channels gone before; the score is at least
    that of the channel before it, so that a ranking by score is the order of removal. Else all from
    the full H at once: two channels that say the same then both look worthless, and both go.

    It is the error that ``compensation="least_squares"`` leaves. O((C r)^3) for r variables per
    channel, see :func:`infoslice.ops.obs_elimination`.

    Args:
        statistics: of the group.
        weights: not used.
        greedy: see above.
        ridge: see above, > 0.
        centred: H is the covariance, not ``E[X X']``. None: where the layer can shift its output (a
            bias, or a batch norm alone behind it), so that means are made up for. The source has it
            uncentred.
        relative: False leaves out the division, as the source does: scores are in squared units of
            the outputs. Where one layer reads the group the order is the same.
        curvature: of which loss of the network, see :func:`infoslice.statistics.output_curvature`:
            in place of ``|e|^2`` an error e of the output costs ``e' F e / 2``, F being that
            curvature. Scores are then what the loss rises by, and compare between layers and
            groups; ``relative`` has no effect.

    Raises:
        ValueError: ``ridge`` is not positive, or too small for moments of so few samples.
    """
    if not ridge > 0:
        raise ValueError(f"obs: argument ridge: expected > 0, got {ridge}")
    live = torch.zeros(statistics.channels, dtype=torch.bool)
    layers: list[tuple[LayerStatistics, Tensor, Tensor]] = []
    for layer in (consumer.remaining() for consumer in statistics.consumers):
        h = layer.second_moments(centred=layer.shifts if centred is None else centred)
        total = float(((layer.weight @ h) * layer.weight).sum())
        if not total > 0:  # nothing that it reads makes a difference
            continue
        live |= (h.diagonal()[layer.variables] > 0).any(1)
        h = ridged(h, ridge)
        if curvature is not None:
            w = layer.weighed(curvature) / 2**0.5
        else:
            w = layer.weight / total**0.5 if relative else layer.weight
        layers.append((layer, h, w))
    scores = torch.zeros(statistics.channels, dtype=torch.float64)
    if not greedy:
        for layer, h, w in layers:
            p, gram = precision_blocks("obs", h, layer), gram_blocks(w, layer.variables)
            scores += torch.linalg.solve(p, gram).diagonal(dim1=1, dim2=2).sum(1)
        return scores * live
    precision, grams, sizes = [], [], []
    for layer, h, w in layers:
        own = w[:, layer.variables.flatten()]
        # Rows of the inverse condition on all that is left out of the selection.
        precision.append(own_part(inverse("obs", h, layer), layer.variables))
        grams.append(own.T @ own)
        sizes.append(layer.variables.shape[1])
    if not sizes:
        return scores
    dead = (~live).nonzero().flatten()
    order, losses, info = ops.obs_elimination(
        precision, grams, statistics.channels - len(dead), group_size=sizes, keep=dead
    )
    if bool(info):
        raise ValueError(
            f"obs: argument ridge: expected second moments that stay positive definite, got a "
            f"singular block at step {int(info)} of group '{statistics.name}'; raise ridge or "
            f"the number of samples"
        )
    scores[order] = increasing(losses)
    return scores
