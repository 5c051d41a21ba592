"""The traps that tools for structured pruning fall into, each under its name."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import infoslice
from infoslice.graph import trace
from infoslice.saving import load_pruned, save_pruned
from infoslice.selection import select
from infoslice.surgery import PruningPlan, plan
from networks import MODELS, Inverted, Residual, Tied, inputs, make
from oracle import assert_same, random_plan, silence


def assert_exact(model, x, pruning=None, seed=1):
    """Sliced equals silenced; returns the smaller model and the plan."""
    pruning = pruning or random_plan(trace(model, x), seed)
    assert pruning.groups
    small = pruning.apply(model).model
    with torch.no_grad():
        assert_same(small(x), silence(model, pruning)(x), 1e-10)
    return small, pruning


class LanguageModel(nn.Module):
    """Attention with grouped keys and values, norms of queries and keys, rotary embedding.

    Half a head (4) twice is as wide as a head, four heads as wide as the residual stream: sizes
    coincide wherever they can.
    """

    def __init__(self, heads=4, shared=2, width=8, norms=True):
        super().__init__()
        hidden = heads * width
        self.width = width
        self.embed = nn.Embedding(11, hidden)
        self.norm = nn.RMSNorm(hidden)
        self.q = nn.Linear(hidden, heads * width, bias=False)
        self.k = nn.Linear(hidden, heads // shared * width, bias=False)
        self.v = nn.Linear(hidden, heads // shared * width, bias=False)
        self.q_norm = nn.RMSNorm(width) if norms else nn.Identity()
        self.k_norm = nn.RMSNorm(width) if norms else nn.Identity()
        self.o = nn.Linear(heads * width, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 12), nn.Linear(12, hidden)
        self.head = nn.Linear(hidden, 11, bias=False)
        self.head.weight = self.embed.weight
        angles = torch.outer(torch.arange(16.0), 10.0 ** -torch.arange(width // 2))
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotated(self, x):
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return x * self.cos[: x.shape[2]] + turned * self.sin[: x.shape[2]]

    def forward(self, tokens):
        x = self.embed(tokens)
        y = self.norm(x)
        shape = (*y.shape[:2], -1, self.width)
        q = self.rotated(self.q_norm(self.q(y).view(shape)).transpose(1, 2))
        k = self.rotated(self.k_norm(self.k(y).view(shape)).transpose(1, 2))
        v = self.v(y).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.silu(self.up(x))))


TOKENS = torch.arange(10).reshape(2, 5)


# ---- what hangs together


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_grouped_query_attention_never_ends(shared):
    """Two query heads to a key head: indices that drift on each turn around a cycle."""
    model = LanguageModel(shared=shared).double()
    started = time.process_time()
    graph = trace(model, TOKENS)
    assert time.process_time() - started < 20
    assert {"embed", "up"} <= {group.name for group in graph.prunable}
    assert_exact(model, TOKENS, random_plan(graph, 3))


def test_plans_say_what_is_cut():
    """Heads and groups of heads are told from channels, from JSON too."""
    model = LanguageModel()
    graph = trace(model, TOKENS)
    pruning = plan(graph, keep={group.name: [0] for group in graph.prunable})
    again = PruningPlan.from_json(pruning.to_json())
    assert again.explain() == pruning.explain()
    assert [(g.kind, g.step) for g in again.groups] == [(g.kind, g.step) for g in pruning.groups]
    heads = [group for group in graph.prunable if "head" in group.kind]
    assert heads
    for group in heads:
        assert (
            f"{group.name}: {group.channels} -> 1 channels, each a {group.kind}" in again.explain()
        )


def test_query_and_key_norms():
    """Heads are cut with their norms, or whole heads past them; never the norms alone."""
    model = LanguageModel().double()
    with torch.no_grad():
        for norm in (model.q_norm, model.k_norm):
            norm.weight.uniform_(0.5, 2)
    small, _ = assert_exact(model, TOKENS)
    for norm, layer in ((small.q_norm, small.q), (small.k_norm, small.k)):
        assert layer.out_features % norm.weight.numel() == 0


def test_concatenation_of_coinciding_sizes():
    """rotate_half puts two halves of a head together: as wide as the head, and other channels."""
    model = LanguageModel(norms=False).double()
    graph = trace(model, TOKENS)
    for group in graph.prunable:
        for kept in ([0], list(range(group.channels - 1))):
            assert_exact(model, TOKENS, plan(graph, keep={group.name: kept}))


def test_grouped_convolution_with_other_channels_per_group():
    """The same positions go in every group: there is no way to ask for anything else."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 4, 1)
    ).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = trace(model, x)
    for group in graph.prunable:
        small, pruning = assert_exact(model, x, plan(graph, keep={group.name: [1]}))
        conv = small[2]
        assert conv.out_channels == conv.weight.shape[0]
        assert conv.in_channels == conv.weight.shape[1] * conv.groups
        for edit in pruning.apply(model).edits:
            if edit.tensor == "0.weight" and conv.groups == 2:
                assert edit.keep.tolist() == [1, 5]
            elif edit.tensor == "0.weight":
                assert edit.keep.tolist() == [4, 5, 6, 7]


def test_one_channel_convolution_is_not_depthwise():
    """One input channel and one group: the channels it writes are its own."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3), nn.Conv2d(1, 4, 1))
    model = nn.Sequential(*model, nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    assert graph.group("0").channels == 6
    assert graph.group("0").producers == ("0",)
    assert graph.group("3").producers == ("3",)
    small, _ = assert_exact(model, x)
    assert small[3].in_channels == 1


def test_instance_norm_with_running_statistics():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    ).double()  # fmt: skip
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    model(3 * x + 1)
    small, pruning = assert_exact(model.eval(), x)
    keep = pruning.keep["0"]
    assert torch.equal(small[1].running_mean, model[1].running_mean[keep])
    assert torch.equal(small[1].running_var, model[1].running_var[keep])
    small.train()(x)


@pytest.mark.parametrize("kind", [*MODELS, LanguageModel])
def test_layers_are_left_out_in_silence(kind):
    """Every module with weights is cut with a group, or named with the reason why not."""
    model, x = (LanguageModel(), TOKENS) if kind is LanguageModel else (make(kind), inputs(kind))
    graph = trace(model, x)
    cut = {piece.module for group in graph.prunable for piece in group.slices}
    for path, module in model.named_modules():
        if list(module.parameters(recurse=False)) and path not in cut:
            assert graph.whole[path]


# ---- what must stay as it was


def test_ties_come_undone():
    """Input and output embedding are one parameter before, after, in training and on disk."""
    model = LanguageModel()
    pruning = random_plan(trace(model, TOKENS), 1)
    small = pruning.apply(model).model
    assert small.head.weight is small.embed.weight
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(TOKENS).square().sum().backward()
    optimizer.step()
    assert small.head.weight is small.embed.weight
    assert len(list(small.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("inplace", [False, True])
def test_frozen_parameters_thaw(inplace):
    model = make(Residual)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("1.weight" not in name)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    small = random_plan(trace(model, inputs(Residual)), 1).apply(model, inplace=inplace).model
    assert {name: p.requires_grad for name, p in small.named_parameters()} == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_frozen_model_without_gradients(mode):
    """A graph that is read off autograd is empty here."""
    model, x = make(Residual).requires_grad_(False), inputs(Residual)
    expected = trace(make(Residual), x).groups
    with mode():
        pruning = random_plan(trace(model, x), 1)
        small = pruning.apply(model).model
        assert_same(small(x), silence(model, pruning)(x), 1e-10)
    assert trace(model, x).groups == expected
    assert not any(p.requires_grad for p in small.parameters())


def test_the_users_modules_are_kept_alive():
    """Mutable default arguments and caches that outlive the call."""
    model = make(Residual)
    refs = [weakref.ref(model), weakref.ref(model.stem[0]), weakref.ref(model.head.weight)]
    pruning = random_plan(trace(model, inputs(Residual), ignored_layers=[model.blocks[0]]), 1)
    small = pruning.apply(model).model
    del model
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]
    refs = [weakref.ref(small), weakref.ref(small.head.weight)]
    del small
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert pruning.keep


def test_memory_is_not_freed_by_views():
    model = make(Residual)
    old = weakref.ref(model.blocks[2].b[0].weight.untyped_storage())
    pruning = plan(trace(model, inputs(Residual)), keep={"blocks.1.b.0": [0, 1]})
    for edit in pruning.apply(model, inplace=True).edits:
        tensor = model.state_dict()[edit.tensor]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    gc.collect()
    assert old() is None


# ---- output


def test_output_cannot_be_pickled():
    model = make(Residual)
    small = random_plan(trace(model, inputs(Residual)), 1).apply(model).model
    for again in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert torch.equal(again(inputs(Residual)), small(inputs(Residual)))


def test_state_does_not_load_with_weights_only():
    """The state of a pruned model is tensors and nothing else, and loads anywhere."""
    model = make(Residual)
    pruning = random_plan(trace(model, inputs(Residual)), 1)
    small = pruning.apply(model).model
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    with torch.device("meta"):
        empty = Residual().double()
    smaller = pruning.apply(empty).model
    smaller.load_state_dict(state, assign=True)
    assert torch.equal(smaller.eval()(inputs(Residual)), small(inputs(Residual)))


def test_safetensors_refuses_tensors_that_are_not_contiguous(tmp_path):
    model = make(Inverted, dtype=torch.float32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.head.weight.set_(model.head.weight.flatten(1).t().contiguous().t()[..., None, None])
    pruning = random_plan(trace(model, inputs(Inverted, torch.float32)), 2, least=2)
    small = pruning.apply(model).model
    weights, _ = save_pruned(small, pruning, tmp_path / "net")
    for name, tensor in load_file(weights).items():
        assert torch.equal(tensor, small.state_dict()[name])
    loaded = load_pruned(Inverted(), tmp_path / "net").eval()
    x = inputs(Inverted, torch.float32)
    torch.testing.assert_close(loaded(x), small(x))


def test_the_file_is_no_smaller(tmp_path):
    model = make(Residual, dtype=torch.float32)
    graph = trace(model, inputs(Residual, torch.float32))
    sizes = []
    for pruning in (plan(graph), plan(graph, keep={g.name: [0, 1] for g in graph.prunable})):
        small = pruning.apply(model).model
        weights, _ = save_pruned(small, pruning, tmp_path / "net")
        sizes.append(weights.stat().st_size)
        numbers = sum(t.numel() * t.element_size() for t in small.state_dict().values())
        assert sizes[-1] < numbers + 5000
    assert sizes[1] < sizes[0] / 2


# ---- where it runs


def test_meta_device():
    with torch.device("meta"):
        model = LanguageModel()
    pruning = random_plan(trace(model, TOKENS.to("meta")), 1)
    small = pruning.apply(model).model
    shapes = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    real = LanguageModel()
    smaller = random_plan(trace(real, TOKENS), 1).apply(real).model
    assert shapes == {name: tuple(tensor.shape) for name, tensor in smaller.named_parameters()}
    assert all(p.device.type == "meta" for p in small.parameters())


def test_compiled_code_is_stale():
    """A model compiled in place runs what fits its new shapes; a copy is not compiled."""
    model, x = make(Residual), inputs(Residual)
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph

    torch._dynamo.reset()
    model.compile(backend=backend)
    with torch.no_grad():
        model(x)
        assert len(compilations) == 1
        pruning = random_plan(trace(model, x), 1)
        expected = silence(model, pruning)(x)
        small = pruning.apply(model).model
        assert_same(small(x), expected, 1e-10)
        assert len(compilations) == 1
        pruning.apply(model, inplace=True)
        assert_same(model(x), expected, 1e-10)
        assert len(compilations) == 2
    with pytest.raises(TypeError, match=r"validate: .*OptimizedModule; pass model\._orig_mod"):
        pruning.apply(torch.compile(model, backend=backend))


# ---- what one asks for


def test_float_index_lists():
    graph = trace(make(Residual), inputs(Residual))
    for given in ([0.0, 2.0], torch.tensor([0.0, 1.0])):
        for argument in ("keep", "remove"):
            with pytest.raises(TypeError, match=r"expected integers, got torch\.float32"):
                plan(graph, **{argument: {"stem.0": given}})


def test_duplicate_indices():
    graph = trace(make(Residual), inputs(Residual))
    for argument in ("keep", "remove"):
        with pytest.raises(ValueError, match=r"unique channels, got \[0, 2, 2\]"):
            plan(graph, **{argument: {"stem.0": [0, 2, 2]}})


def test_empty_remove_list():
    model = make(Residual)
    result = plan(trace(model, inputs(Residual)), remove={"stem.0": []}).apply(model)
    assert result.edits == ()
    assert result.model.stem[0].out_channels == 6


@pytest.mark.parametrize("round_to", [1, 4, 8, 64])
def test_rounding_enlarges_a_layer(round_to):
    scores = {"a": torch.rand(6), "b": torch.rand(13), "c": torch.rand(64)}
    for allocation in ("uniform", "global"):
        kept = select(scores, pruning_ratio=0.5, allocation=allocation, round_to=round_to)
        for name, keep in kept.items():
            assert 0 < len(keep) <= len(scores[name])
            assert len(keep) % round_to == 0 or len(keep) == len(scores[name])


def test_scores_that_are_whole_numbers():
    """Ranks, say: they are compared as any others."""
    scores = {"a": torch.arange(8), "b": torch.arange(8, 16)}
    as_floats = {name: values.double() for name, values in scores.items()}
    for allocation in ("uniform", "global"):
        kept = select(scores, pruning_ratio=0.25, allocation=allocation)
        expected = select(as_floats, pruning_ratio=0.25, allocation=allocation)
        assert all(torch.equal(kept[name], expected[name]) for name in scores)


def test_optimizer_of_the_wrong_parameters():
    model = make(Residual)
    optimizer = torch.optim.Adam(make(Residual).parameters())
    pruning = random_plan(trace(model, inputs(Residual)), 1)
    with pytest.raises(ValueError, match="expected one that holds the parameters to cut"):
        pruning.apply(model, inplace=True, optimizer=optimizer)
    assert model.stem[0].out_channels == 6


@pytest.mark.parametrize("kind", [Residual, Inverted, Tied, LanguageModel])
def test_pruning_in_steps(kind):
    """Cut, traced again and cut again is the same as cut once."""
    if kind is LanguageModel:
        model, x = LanguageModel(shared=1).double(), TOKENS
    else:
        model, x = make(kind), inputs(kind)
    graph = trace(model, x)
    first = random_plan(graph, 1, least=3)
    once = first.apply(model).model
    again = trace(once, x)
    second = random_plan(again, 2)
    twice = second.apply(once).model
    assert [g.name for g in again.prunable] == [g.name for g in graph.prunable]
    composed = {}
    for group in graph.prunable:
        kept = first.keep.get(group.name, torch.arange(group.channels))
        composed[group.name] = kept[second.keep.get(group.name, torch.arange(len(kept)))]
    direct = plan(graph, keep=composed).apply(model).model
    for (name, ours), theirs in zip(
        twice.state_dict().items(), direct.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_the_whole_package_in_steps():
    """prune, and prune again what came out."""
    model, x = make(Residual, dtype=torch.float32), inputs(Residual, torch.float32)
    kwargs = {"criterion": "l2_norm", "perturbation": "gaussian", "samples": 16}
    once = infoslice.prune(model, x, pruning_ratio=0.3, show_progress=False, **kwargs).model
    twice = infoslice.prune(once, x, pruning_ratio=0.3, show_progress=False, **kwargs).model
    count = [sum(p.numel() for p in net.parameters()) for net in (model, once, twice)]
    assert count[0] > count[1] > count[2]
    assert torch.isfinite(twice(x)).all()
