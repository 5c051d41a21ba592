"""Channels that are kept take over the outgoing weights of those that merge into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infoslice.graph import ChannelGroup
from infoslice.group_weights import positions

__all__ = ["merge_"]


@torch.no_grad()
def merge_(model: nn.Module, group: ChannelGroup, into: Tensor) -> None:
    """``a_i += a_j`` in every layer that reads the group, for each channel j that merges into i.

    Exact where the two channels are equal. The weights that read j are left for the caller to zero
    or to cut. Source: Srinivas and Babu 2015, arXiv 1507.06149; which channels merge says
    :func:`infoslice.criteria.srinivas_babu.merges`.

    Args:
        model: of full size, changed in place.
        group: one of the model's.
        into: int64 ``[C]``: into which channel each one merges, itself if it stays; no chains.

    Raises:
        ValueError: a channel merges into one that merges itself.
    """
    gone = (into != torch.arange(len(into))).nonzero().flatten()
    if bool((into[into] != into).any()):
        raise ValueError(
            "merge_: argument into: expected channels that stay, got one that merges into another"
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    pieces = {(p.tensor, p.axis, p.index_map) for p in group.slices if p.role == "in"}
    for name, axis, index_map in sorted(pieces):
        places = positions(index_map)
        rows = tensors[name].movedim(axis, 0)
        target, source = (places[c].flatten().to(rows.device) for c in (into[gone], gone))
        # Several may merge into one: their sum is taken in float64 and rounded once.
        change = torch.zeros_like(rows, dtype=torch.float64)
        change.index_add_(0, target, rows[source].double())
        rows[target] = (rows[target] + change[target]).to(rows.dtype)
