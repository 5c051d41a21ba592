"""Channels go whose loss the others make up for best: structured Optimal Brain Surgeon.

Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models",
NeurIPS, arXiv 2302.04089, after Hassibi and Stork 1993.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.precision import gram_blocks, inverse, own_part, precision_blocks
from infoslice.selection import increasing
from infoslice.statistics import ridged

__all__ = ["obs"]


def obs(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    greedy: bool = True,
    ridge: float = 1e-2,
    centred: bool | None = None,
    relative: bool = True,
    curvature: Mapping[str, Tensor] | None = None,
    shrinkage: float = 0.1,
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
        curvature: layer -> F ``[m, m]`` of :func:`infoslice.statistics.output_curvature`: in place
            of ``|e|^2`` an error e of the output costs ``e' F e / 2``. Scores are then nats of the
            network's loss, and compare between layers and groups; ``relative`` has no effect.
        shrinkage: share of F that is replaced by the identity times its mean eigenvalue, in [0, 1].

    Raises:
        ValueError: ``ridge`` is not positive, or too small for moments of so few samples;
            ``shrinkage`` out of range; a layer without curvature, or one of another size.
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
            w = _root(curvature, layer, shrinkage) @ layer.weight
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


def _root(curvature: Mapping[str, Tensor], layer: LayerStatistics, shrinkage: float) -> Tensor:
    """R ``[m, m]`` with ``|R e|^2 = e' F e / 2``."""
    f, m = curvature.get(layer.name), len(layer.weight)
    if f is None or f.shape != (m, m):
        raise ValueError(
            f"obs: argument curvature: expected [{m}, {m}] for layer '{layer.name}', got "
            f"{None if f is None else tuple(f.shape)}"
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"obs: argument shrinkage: expected 0 to 1, got {shrinkage}")
    mean = f.diagonal().double().mean()
    values, vectors = torch.linalg.eigh(
        (1 - shrinkage) * f.double() + shrinkage * mean * torch.eye(m, dtype=torch.float64)
    )
    # Rounding alone makes an eigenvalue of a mean of squares negative.
    root: Tensor = (values.clamp_min(0) / 2).sqrt()[:, None] * vectors.T
    return root
