"""What a cut model is compared with: the whole model with the removed channels silenced.

Silencing is done on the input side of the consumers (their weights for removed channels are zero),
which is exact for any activation function; layer norms are silenced by normalising over the kept
channels. Where all activations map 0 to 0 a second, independent oracle silences the producers.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from infoslice.surgery import plan


def random_plan(graph, seed, least=1):
    generator = torch.Generator().manual_seed(seed)
    remove = {}
    for group in graph.prunable:
        least_here = min(least, group.channels - 1)
        left = int(torch.randint(least_here, group.channels, (1,), generator=generator))
        remove[group.name] = torch.randperm(group.channels, generator=generator)[left:]
    return plan(graph, remove=remove)


class KeptNorm(nn.Module):
    """A layer, RMS or one-group norm over the kept channels; zeros elsewhere."""

    def __init__(self, norm, keep):
        super().__init__()
        self.norm, self.keep = norm, keep

    def forward(self, x):
        norm, keep, y = self.norm, self.keep, torch.zeros_like(x)
        weight = None if norm.weight is None else norm.weight[keep]
        bias = norm.bias[keep] if getattr(norm, "bias", None) is not None else None
        if isinstance(norm, nn.GroupNorm):
            y[:, keep] = F.group_norm(x[:, keep], 1, weight, bias, norm.eps)
        elif isinstance(norm, nn.RMSNorm):
            y[..., keep] = F.rms_norm(x[..., keep], (len(keep),), weight, norm.eps)
        else:
            y[..., keep] = F.layer_norm(x[..., keep], (len(keep),), weight, bias, norm.eps)
        return y


def silence(model, pruning, role="in"):
    """A copy of the same shapes in which removed channels have no effect."""
    model = copy.deepcopy(model)
    state = model.state_dict()
    for group in pruning.groups:
        keep = pruning.keep[group.name]
        gone = torch.tensor(sorted(set(range(group.channels)) - set(keep.tolist())))
        for piece in group.slices:
            producing = role == "out" and not piece.tensor.endswith("running_var")
            if piece.role == role or (producing and piece.role == "follow"):
                state[piece.tensor].index_fill_(piece.axis, piece.index_map.indices(gone), 0)
        for text in group.renormalised:
            path = text.split("'")[1]
            parent = model.get_submodule(path.rpartition(".")[0])
            norm = model.get_submodule(path)
            setattr(parent, path.rpartition(".")[2], KeptNorm(norm, keep))
    return model


def assert_same(ours, theirs, tolerance):
    ours, theirs = (v["logits"] if isinstance(v, dict) else v for v in (ours, theirs))
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error <= tolerance, error
