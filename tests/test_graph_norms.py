"""Normalisations written by hand: after a cut their statistics are taken over what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan

EPS = 1e-6


def centred(x):
    return x - x.mean(-1, keepdim=True)


def upcast(x):
    wide = x.to(torch.float64)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def written_out(x):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS)


def unbiased(x):
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()


NORMS = {
    "mean of pow": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
    "mean of product": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS),
    "mean of square": lambda x: x / (x.square().mean(-1, keepdim=True) + EPS).sqrt(),
    "power": lambda x: (x.pow(2).mean(-1, keepdim=True) + EPS).pow(-0.5) * x,
    "reciprocal": lambda x: x * (1 / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()),
    "upcast": upcast,
    "centred": centred,
    "centred first": lambda x: centred(x) / (centred(x).pow(2).mean(-1, True) + EPS).sqrt(),
    "layer norm": written_out,
    "variance": lambda x: centred(x) / (x.var(-1, keepdim=True, unbiased=False) + EPS).sqrt(),
    "variance and mean": unbiased,
    "standard deviation": lambda x: centred(x) / (x.std(-1, keepdim=True) + EPS),
    "length": lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(EPS),
    "torch's normalize": lambda x: nn.functional.normalize(x, dim=-1),
    "sum of squares": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS),
    "no axis left": lambda x: x / (x.pow(2).mean(-1) + EPS).sqrt().unsqueeze(-1),
    "divided by the mean": lambda x: x.exp() / (x.exp().mean(-1, keepdim=True) + EPS),
}
OTHER_REDUCTIONS = {
    "gate": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "scaled up": lambda x: x * x.pow(2).mean(-1, keepdim=True).sqrt(),
    "added": lambda x: x + x.mean(-1, keepdim=True),
    "subtracted from": lambda x: x.mean(-1, keepdim=True) - x,
    "read twice": lambda x: (h := x.pow(2).mean(-1, True) + EPS).rsqrt() * x + h,
    "largest": lambda x: x / x.amax(-1, keepdim=True),
    "of other channels": lambda x: x[..., :4] / (x[..., 4:].pow(2).mean(-1, True) + EPS).sqrt(),
    "length told": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + EPS),
}


class Norm(nn.Module):
    def __init__(self, normalise, width):
        super().__init__()
        self.weight, self.normalise = nn.Parameter(torch.randn(width)), normalise

    def forward(self, x):
        return self.normalise(x) * self.weight


def network(normalise, width=8):
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), Norm(normalise, width), nn.Linear(width, 3)
    return nn.Sequential(*layers).double(), torch.randn(2, 4, 5, dtype=torch.double)


@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_taken_over_what_is_left(name):
    model, x = network(NORMS[name])
    graph = trace(model, x)
    (group,) = graph.prunable
    assert group.renormalised == ("normalisation in '1'",)
    assert group.followers == ("1",)
    keep = [1, 2, 5, 7]
    small = plan(graph, keep={group.name: keep}).apply(model).model
    first, norm, last = model
    kept = NORMS[name](first(x)[..., keep]) * norm.weight[keep]
    expected = nn.functional.linear(kept, last.weight[:, keep], last.bias)
    assert (small(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", OTHER_REDUCTIONS)
def test_other_reductions_need_all_channels(name):
    model, x = network(OTHER_REDUCTIONS[name], 4 if name == "of other channels" else 8)
    graph = trace(model, x)
    assert "0" not in {producer for group in graph.prunable for producer in group.producers}
    assert any(word in graph.whole["0"] for word in ("reduces the axis", "does not run alike"))


def test_axes_that_are_no_channels_do_not_count():
    """A mean over positions normalises nothing that could be cut; the channels pass."""
    model, x = network(lambda x: x - x.mean(1, keepdim=True))
    (group,) = trace(model, x).prunable
    assert group.renormalised == ()
