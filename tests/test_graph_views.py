"""A graph as people see it: kinds of channels, explanations and the drawing."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice import trace
from networks import MODELS, Residual, inputs, make


class Heads(nn.Module):
    """Attention written by hand or called; ``shared`` query heads read each key and value."""

    def __init__(self, shared, fused, by_hand):
        super().__init__()
        self.shared, self.by_hand = shared, by_hand
        if fused:
            self.qkv = nn.Linear(8, 3 * 12)
        else:
            self.q, self.k, self.v = (nn.Linear(8, n) for n in (12, 12 // shared, 12 // shared))
        self.o = nn.Linear(12, 8)

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (
            self.q(x), self.k(x), self.v(x)
        )  # fmt: skip
        q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in parts)
        if self.by_hand:
            k, v = (t.repeat_interleave(self.shared, 1) if self.shared > 1 else t for t in (k, v))
            y = (q @ k.mT / 3**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.shared > 1)
        return self.o(y.transpose(1, 2).flatten(2))


def kinds(graph):
    return {(group.channels, group.kind) for group in graph.prunable}


@pytest.mark.parametrize("by_hand", [False, True])
def test_heads_and_key_value_groups_are_told_by_structure(by_hand):
    x = torch.randn(2, 5, 8)
    for fused in (False, True):
        found = kinds(trace(Heads(1, fused, by_hand), x))
        assert (4, "head of width 3") in found, found
    if not by_hand:
        found = kinds(trace(Heads(2, False, by_hand), x))
        assert (2, "key/value group with 2 query heads of width 3") in found


def test_groups_of_a_convolution_and_of_a_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 10, 1, groups=5),
        nn.Conv2d(10, 2, 1),
    )  # fmt: skip
    graph = trace(model, torch.zeros(1, 3, 6, 6))
    assert kinds(graph) == {
        (4, "group of 3 channels of a convolution"),
        (3, "channel in each of the 4 groups of a convolution"),
        (2, "channel in each of the 4 groups of a convolution"),
        (3, "group of 2 channels of a group norm"),
        (5, "channel"),
    }
    text = graph.group("0").describe()
    assert "0: 4 channels, each a group of 3 channels of a convolution, prunable" in text
    assert "one takes 3 of: 0.weight axis 0, 0.bias axis 0" in text
    assert "one takes 2 of:" in text


def test_plain_channels_are_called_channels():
    for kind in MODELS:
        graph = trace(make(kind), inputs(kind))
        assert {group.kind for group in graph.groups} == {"channel"}


def test_an_explanation_names_what_hangs_together_and_what_joins_it():
    graph = trace(make(Residual), inputs(Residual))
    stream = next(group for group in graph.prunable if len(group.producers) > 1)
    reader = stream.consumers[0]
    text = graph.explain(reader)
    assert f"{reader}:\n  reads {stream.name}: {stream.channels} channels, prunable" in text
    assert f"written by: {', '.join(stream.producers)}" in text
    assert re.search(r"joined by: add", text)
    last = graph.layers[-1]
    assert "left whole: model output" in graph.explain(last)
    everything = graph.explain("")
    assert all(f"{layer}:\n" in everything for layer in graph.layers)
    assert f"reads {stream.name}, as above" in everything
    assert everything.count(f"{stream.name}: ") == 1
    with pytest.raises(ValueError, match=r"a module with weights.* got 'nobody'"):
        graph.explain("nobody")


@pytest.mark.parametrize("kind", MODELS)
def test_the_drawing_has_every_group_with_its_layers(kind):
    graph = trace(make(kind), inputs(kind))
    dot = graph.to_dot()
    assert dot.startswith("digraph channels {")
    assert dot.endswith("}")
    for group in graph.groups:
        for module in group.producers:
            assert f'"layer {module}" -> "group {group.name}"' in dot
        for module in group.consumers:
            assert f'"group {group.name}" -> "layer {module}"' in dot
    edges = sum(len(g.producers) + len(g.consumers) for g in graph.groups)
    assert dot.count(" -> ") == edges
    assert all(line.count('"') % 2 == 0 for line in dot.splitlines())
