"""A cut model computes what the whole one does with those channels silenced (see oracle.py)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan
from networks import MODELS, Inverted, PlainCNN, Residual, TwoInputs, inputs, make
from oracle import assert_same, random_plan, silence


@pytest.mark.parametrize("kind", MODELS)
def test_every_channel_of_every_group_counts(kind):
    """The graph finds something to cut in each model, and silencing it changes the output."""
    model, x = make(kind), inputs(kind)
    graph = trace(model, x)
    assert graph.prunable
    for group in graph.prunable:
        pruning = plan(graph, keep={group.name: [group.channels - 1]})
        assert not torch.allclose(silence(model, pruning)(x), model(x), rtol=1e-6), group.name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", MODELS)
def test_sliced_equals_silenced(kind, seed):
    model, x = make(kind, seed), inputs(kind)
    graph = trace(model, x)
    pruning = random_plan(graph, seed)
    small = pruning.apply(model).model
    more = inputs(kind, seed=seed + 2)
    more = torch.cat([x, more, x])  # the batch size is not baked in
    with torch.no_grad():
        assert_same(small(more), silence(model, pruning)(more), 1e-10)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in small.parameters()) < count


@pytest.mark.parametrize("kind", MODELS)
def test_one_group_at_a_time(kind):
    model, x = make(kind), inputs(kind)
    graph = trace(model, x)
    for group in graph.prunable:
        for keep in ([group.channels - 1], list(range(0, group.channels, 2))):
            pruning = plan(graph, keep={group.name: keep})
            with torch.no_grad():
                small = pruning.apply(model).model(x)
                assert_same(small, silence(model, pruning)(x), 1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_single_precision(kind):
    model, x = make(kind, dtype=torch.float32), inputs(kind, torch.float32)
    graph = trace(model, x)
    pruning = random_plan(graph, 5, least=2)
    with torch.no_grad():
        assert_same(pruning.apply(model).model(x), silence(model, pruning)(x), 1e-5)


@pytest.mark.parametrize("kind", [PlainCNN, Residual, Inverted])
def test_producers_silenced_instead(kind):
    """Independent of the consumers' index maps: with f(0) = 0 the producers may be zeroed."""
    model, x = make(kind), inputs(kind)
    for module in model.modules():  # biases of what follows a channel belong to it
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    graph = trace(model, x)
    pruning = random_plan(graph, 3)
    state_fixed = silence(model, pruning, role="out")
    with torch.no_grad():
        assert_same(pruning.apply(model).model(x), state_fixed(x), 1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_smaller_models_train(kind):
    model, x = make(kind, dtype=torch.float32), inputs(kind, torch.float32)
    small = random_plan(trace(model, x), 7, least=2).apply(model).model.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in small.parameters()]
    small(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_tracing_again_gives_the_smaller_graph(kind):
    """Two cuts in a row equal one; sizes kept in modules have followed."""
    model, x = make(kind), inputs(kind)
    graph = trace(model, x)
    first = random_plan(graph, 11, least=2)
    small = first.apply(model).model
    again = trace(small, x)
    left = {group.name: group.channels for group in again.prunable}
    for group in graph.prunable:
        kept = first.keep.get(group.name, torch.arange(group.channels))
        if len(kept) > 1:
            assert left[group.name] == len(kept)
    second = random_plan(again, 12)
    both = {name: kept for name, kept in first.keep.items()}
    for name, kept in second.keep.items():
        both[name] = both[name][kept] if name in both else kept
    direct = plan(graph, keep=both).apply(model).model
    for a, b in zip(second.apply(small).model.parameters(), direct.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("as_dict", [True, False])
def test_keyword_inputs(as_dict):
    model = make(TwoInputs)
    image, text = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 4).double()
    if as_dict:
        graph = trace(model, {"image": image, "text": text, "scale": 0.5})
    else:
        graph = trace(model, [image], example_kwargs={"text": text, "scale": 0.5})
    (group,) = graph.prunable
    assert group.producers == ("image", "text")
    pruning = random_plan(graph, 0)
    with torch.no_grad():
        small = pruning.apply(model).model
        kwargs = {"text": text, "scale": 0.5}
        assert_same(small(image, **kwargs), silence(model, pruning)(image, **kwargs), 1e-10)
