"""Tracing: which channels hang together, what is left whole and why, what tracing must not do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from infoslice.graph import IndexMap, TraceError, trace
from infoslice.surgery import PruningPlan, plan
from networks import MODELS, Block, Inverted, Run, inputs, make
from oracle import assert_same, random_plan, silence


def groups_of(graph):
    return {group.name: group for group in graph.groups}


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# ---- structure


def test_residual_stream_is_one_group():
    model = nn.Sequential(Block(3, 6), Block(6, 6), Block(6, 8, 2))
    groups = groups_of(trace(model, image(1, 3, 8, 8)))
    assert list(groups) == ["0.a.0", "0.b.0", "1.a.0", "2.a.0", "2.b.0"]
    stream = groups["0.b.0"]
    assert stream.producers == ("0.b.0", "0.short.0", "1.b.0")
    assert stream.consumers == ("1.a.0", "2.a.0", "2.short.0")
    assert stream.followers == ("0.b.1", "0.short.1", "1.b.1")
    roles = {(piece.tensor, piece.axis): piece.role for piece in stream.slices}
    assert roles["1.b.0.weight", 0] == "out"
    assert roles["2.short.0.weight", 1] == "in"
    assert roles["0.short.1.running_var", 0] == "follow"
    assert len(stream.slices) == 3 + 3 + 3 * 4
    assert not groups["2.b.0"].prunable
    assert groups["2.b.0"].reason == "model output"


def test_layers_and_whole_in_execution_order():
    model = Run(
        lambda s, x: s.last(s.first(x).mean((2, 3))),
        last=nn.Linear(4, 2), first=nn.Conv2d(1, 4, 3), spare=nn.Linear(4, 4),
    )  # fmt: skip
    graph = trace(model, image(1, 1, 5, 5))
    assert graph.layers == ("first", "last")
    assert graph.whole == {
        "last": "model output",
        "spare": "not called with these example inputs",
    }
    text = graph.describe()
    assert "first: 4 channels, prunable" in text
    assert "spare: not called" in text
    assert graph.group("first").describe().splitlines()[1:] == [
        "  written by: first",
        "  read by: last",
    ]
    with pytest.raises(ValueError, match="expected one of first, last; got middle"):
        graph.group("middle")


class Auxiliary(nn.Module):
    """A second head that is called in training mode only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 2)
        self.aux = nn.Sequential(nn.Linear(6 * 9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x):
        x = F.relu(self.a(x))
        y = self.head(self.b(x).mean((2, 3)))
        return (y, self.aux(x.flatten(1))) if self.training else y


def test_what_training_alone_reads_is_left_whole():
    model = Auxiliary().train()
    graph = trace(model, image(1, 1, 5, 5))  # on which the batch norm cannot train
    assert [g.name for g in graph.prunable] == ["b"]
    assert graph.whole["a"] == "'aux.0' reads it in training mode only"
    assert graph.whole["aux.0"] == "not called with these example inputs"
    small = plan(graph, remove={"b": [1]}).apply(model).model
    assert [y.shape for y in small(image(2, 1, 5, 5))] == [(2, 2), (2, 2)]


def test_index_maps_of_flatten_concat_and_multiplier():
    model = Run(
        lambda s, x: s.c(torch.cat([s.a(x).flatten(1), s.b(x).permute(0, 2, 3, 1).flatten(1)], 1)),
        a=nn.Conv2d(1, 3, 2), b=nn.Conv2d(1, 4, 2), c=nn.Linear(28, 2),
    )  # fmt: skip
    maps = [g.slices[-1].index_map for g in trace(model, image(2, 1, 3, 3)).prunable]
    assert maps == [IndexMap(3, run=4), IndexMap(4, offset=12, repeat=4, period=4)]
    wide = Run(
        lambda s, x: s.c(s.b(s.a(x))),
        a=nn.Conv2d(1, 3, 1), b=nn.Conv2d(3, 6, 1, groups=3), c=nn.Conv2d(6, 1, 1),
    )  # fmt: skip
    (group,) = trace(wide, image(1, 1, 3, 3)).prunable
    maps = {piece.tensor: piece.index_map for piece in group.slices if piece.module != "a"}
    assert set(maps.values()) == {IndexMap(3, run=2)}
    assert set(maps) == {"b.weight", "b.bias", "c.weight"}
    assert group.followers == ("b",)


def test_equal_sizes_are_no_reason():
    """Batch, channels, height and width all 4: only the channel axes are coupled."""
    model = Run(
        lambda s, x: s.c(F.relu(s.b(s.a(x))).flatten(1)),
        a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Linear(64, 4),
    )  # fmt: skip
    graph = trace(model, image(4, 4, 4, 4))
    assert [g.name for g in graph.prunable] == ["a", "b"]
    assert graph.group("b").slices[-1].index_map == IndexMap(4, run=16)
    assert [p.tensor for p in graph.group("a").slices] == ["a.weight", "a.bias", "b.weight"]


def test_one_channel_is_no_depthwise_convolution():
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 1, 3), nn.Conv2d(1, 4, 1), nn.ReLU(),
                          nn.Conv2d(4, 2, 1))  # fmt: skip
    graph = trace(model, image(1, 1, 9, 9))
    assert [g.name for g in graph.prunable] == ["0", "2"]
    assert "1" in graph.whole


def test_spatial_attention_map_does_not_bind():
    model = Run(
        lambda s, x: s.c((h := s.a(x)) * torch.sigmoid(s.b(h))),
        a=nn.Conv2d(2, 6, 3), b=nn.Conv2d(6, 1, 1), c=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    assert [g.name for g in trace(model, image(1, 2, 6, 6)).prunable] == ["a"]


def test_ignored_layers():
    model = make(Inverted)
    x = inputs(Inverted)
    for ignored in (["dw"], [model.dw], ["dw.0", model.dw[1]]):
        graph = trace(model, x, ignored_layers=ignored)
        assert graph.group("up.0").reason == "ignored by the caller"
        assert [g.name for g in graph.prunable] == ["stem.0"]
    for wrong in (["nowhere"], [nn.ReLU()]):
        with pytest.raises(ValueError, match="ignored_layers: expected modules of the model"):
            trace(model, x, ignored_layers=wrong)
    with pytest.raises(TypeError, match="ignored_layers: expected a sequence"):
        trace(model, x, ignored_layers="dw")


# ---- what tracing must not do


@pytest.mark.parametrize("kind", MODELS)
def test_model_is_untouched(kind):
    model = make(kind, dtype=torch.float32).train()
    frozen = next(model.parameters()).requires_grad_(False)
    identities = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    before = copy.deepcopy(model.state_dict())
    trace(model, inputs(kind, torch.float32))
    assert all(module.training for module in model.modules())
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert {name: id(t) for name, t in model.state_dict(keep_vars=True).items()} == identities
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("state", ["meta", "frozen", "bfloat16", "no_grad"])
def test_every_state_gives_the_same_groups(kind, state):
    model, x = make(kind), inputs(kind)
    expected = trace(model, x)
    if state == "meta":
        with torch.device("meta"):  # moving a model there would untie its parameters
            model = kind().double()
        assert trace(model, x.to("meta")).groups == expected.groups
    elif state == "frozen":
        model.requires_grad_(False)
    elif state == "bfloat16":
        model = model.to(torch.bfloat16)
        x = x.to(torch.bfloat16) if x.is_floating_point() else x
    with torch.set_grad_enabled(state != "no_grad"):
        graph = trace(model, x)
    assert graph.groups == expected.groups
    assert graph.whole == expected.whole


def test_a_model_too_large_for_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1000, 10**7), nn.ReLU(), nn.Linear(10**7, 10))
    (group,) = trace(model, torch.empty(1, 1000, device="meta")).prunable
    assert group.channels == 10**7


def test_autocast_is_followed():
    def forward(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.o(F.relu(s.q(x)))

    graph = trace(Run(forward, q=nn.Linear(8, 6), o=nn.Linear(6, 4)), image(2, 3, 8))
    assert [group.producers for group in graph.prunable] == [("q",)]


# ---- left whole, with the reason


def test_a_tensor_reached_past_the_dispatcher_stays_whole():
    def forward(s, x):
        h = s.q(x)
        return s.o(h) + s.p(h.data)

    def mapped(s, x):
        h = s.q(x)
        return s.o(h) + torch.vmap(s.p)(h)

    for run in (forward, mapped):
        model = Run(run, q=nn.Linear(8, 6), o=nn.Linear(6, 4), p=nn.Linear(6, 4))
        graph = trace(model, image(2, 3, 8))
        assert graph.prunable == ()
        assert "tensor_data" in graph.whole["q"]


def attention(s, x):
    q, k, v = s.q(x), s.k(x), s.v(x)
    return s.o(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


def heads(s, x):
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, 2, -1).transpose(1, 2) for layer in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v)
    return s.o(y.transpose(1, 2).reshape(n, t, -1))


def glu_split(s, x):
    a, b = s.q(x).chunk(2, dim=-1)
    return s.o(F.silu(a) * b)


def eca(s, x):
    y = s.q(x)
    return s.o(
        y * torch.sigmoid(F.conv1d(y.mean(1, True), s.o.weight.new_ones(1, 1, 3), padding=1))
    )


norm = nn.LocalResponseNorm(3)
QKV = {"q": 8, "k": 8, "v": 8}
WHOLE = {
    "softmax over channels": (lambda s, x: s.o(torch.softmax(s.q(x), -1)), QKV, "softmax"),
    "attention": (attention, QKV, "matmul"),
    "glu": (lambda s, x: s.o(F.glu(s.q(x))), {"q": 16}, "glu"),
    "mean over channels": (
        lambda s, x: s.o((h := s.q(x)) * h.mean(-1, keepdim=True)), {"q": 8}, "mean",
    ),
    "sort": (lambda s, x: s.o(s.q(x).sort(-1).values), {"q": 8}, "sort"),
    "flip": (lambda s, x: s.o(s.q(x).flip(-1)), {"q": 8}, "flip"),
    "cumsum": (lambda s, x: s.o(s.q(x).cumsum(-1)), {"q": 8}, "cumsum"),
    "padded channels": (lambda s, x: s.o(F.pad(s.q(x), (1, 2))), {"q": 5}, "pad"),
    "norm over two axes": (
        lambda s, x: s.o(F.layer_norm(s.q(x), (3, 8))), {"q": 8}, "several axes",
    ),
    "input added": (lambda s, x: s.o(s.q(x) + x), {"q": 8}, "model input"),
    "constant added": (
        lambda s, x: s.o(s.q(x) + torch.arange(8.0)), {"q": 8}, "",
    ),
    "weight from the input": (
        lambda s, x: s.o(F.linear(x, torch.cat([s.q(x)[0], x.new_ones(5, 8)]))), {"q": 8},
        "computed from the input",
    ),
    "scale from a count": (
        lambda s, x: s.o((h := s.q(x)) * h.shape[-1] ** -0.5), {"q": 8}, "does not run alike: mul",
    ),
    "count as divisor": (lambda s, x: s.o((h := s.q(x)) / len(h[0, 0])), {"q": 8}, "not run alike"),
    "convolution along channels": (eca, {"q": 8}, "spatial or kernel axis"),
    "response norm": (lambda s, x: s.o(norm(s.q(x).transpose(1, 2)).transpose(1, 2)), {"q": 8}, ""),
    "crossed reshape": (
        lambda s, x: s.o(s.q(x).transpose(1, 2).reshape(2, 3, 8)), {"q": 8}, "regroups",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_left_whole_with_reason(name):
    forward, layers, reason = WHOLE[name]
    made = {layer: nn.Linear(8, width) for layer, width in layers.items()}
    model = Run(forward, o=nn.Linear(8, 4), **made)
    graph = trace(model, image(2, 3, 8))
    assert reason in graph.whole["q"]
    assert "q" not in {producer for g in graph.prunable for producer in g.producers}
    refused = "expected prunable groups, got 'q' that is left whole|groups among .*, got 'q'"
    with pytest.raises(ValueError, match=refused):
        plan(graph, remove={"q": [0]})


CONVS = {
    "weight norm": (lambda s, x: s.o(s.b(s.a(x))), weight_norm(nn.Conv2d(8, 8, 1)), "parametrised"),
    "hard-coded reshape": (
        lambda s, x: s.o(s.b(s.a(x)).reshape(-1, 8, 4, 4)), nn.ReLU(), "does not run alike",
    ),
    "hard-coded scale": (
        lambda s, x: s.o((h := s.b(s.a(x))) * h.shape[1] ** -0.5 + h.new_zeros(h.shape)), nn.ReLU(),
        "does not run alike",
    ),
    "hard-coded constant": (
        lambda s, x: s.o(s.b(s.a(x)) + torch.ones(8, 1, 1)), nn.ReLU(), "does not run alike",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_left_whole_with_reason(name):
    forward, middle, reason = CONVS[name]
    model = Run(forward, a=nn.Conv2d(3, 8, 1), b=middle, o=nn.Conv2d(8, 2, 1))
    graph = trace(model, image(2, 3, 4, 4))
    assert graph.prunable == ()
    assert reason in graph.whole["a"]


def test_attention_with_a_number_of_heads_spelt_out():
    """The code spells out two heads: they stay, the width of the values may shrink."""
    torch.manual_seed(0)
    model = Run(
        lambda s, x: s.head((h := (e := s.embed(x)) + heads(s, e)) + s.down(F.gelu(s.up(h)))),
        embed=nn.Linear(5, 6), q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8),
        o=nn.Linear(8, 6), up=nn.Linear(6, 10), down=nn.Linear(10, 6), head=nn.Linear(6, 3),
    ).double()  # fmt: skip
    x = image(2, 4, 5).double()
    graph = trace(model, x)
    assert {g.name: (g.channels, g.producers) for g in graph.prunable} == {
        "embed": (6, ("embed", "o", "down")),
        "up": (10, ("up",)),
        "v": (4, ("v",)),
    }
    assert set(graph.whole) == {"q", "k", "head"}
    pruning = random_plan(graph, 1)
    with torch.no_grad():
        assert_same(pruning.apply(model).model(x), silence(model, pruning)(x), 1e-10)


def test_recurrent_layers_are_left_whole():
    model = Run(
        lambda s, x: s.head(s.lstm(s.a(x))[0]),
        a=nn.Linear(4, 8), lstm=nn.LSTM(8, 6, batch_first=True), head=nn.Linear(6, 2),
    )  # fmt: skip
    graph = trace(model, image(2, 3, 4))
    assert graph.prunable == ()
    assert set(graph.whole) == {"a", "lstm", "head"}


def test_contexts_and_casts_pass():
    def forward(s, x):
        with torch.no_grad():
            y = F.relu(s.a(x)).to(torch.float64)
        return s.b(y.type_as(s.b.weight).float())

    (group,) = trace(Run(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4)), image(3, 4)).prunable
    assert group.name == "a"


def test_shared_memory_and_norms_shared_between_groups():
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    model[1].weight.data = torch.randn(6, 6)
    model[0].bias.data = model[1].bias.data
    assert "share memory without being one parameter" in trace(model, image(2, 3)).whole["0"]
    norm = nn.LayerNorm(6, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(3, 6), norm, nn.Linear(6, 6), norm, nn.Linear(6, 2))
    assert "for several groups" in trace(model, image(2, 3)).whole["0"]


# ---- refused


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Items(nn.Module):
    def forward(self, x):
        return x[: int(x.argmax())]


class Selected(nn.Module):
    def forward(self, x):
        return x[x > 0]


class Broken(nn.Module):
    def forward(self, x):
        return x @ x.new_ones(77, 3)


@pytest.mark.parametrize("part", [Branch(), Items(), Selected(), Broken()])
def test_untraceable_models_name_the_module(part):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), part))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TraceError, match=r"in module '1\.1'.*prune the submodules") as caught:
        trace(model, image(2, 4))
    assert isinstance(caught.value, ValueError)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_wrong_arguments():
    model = nn.Linear(3, 2)
    with pytest.raises(TraceError, match="the example inputs fit the model"):
        trace(model, image(2, 4))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        trace(3, image(2, 3))
    with pytest.raises(TypeError, match="example_inputs: expected a tensor, a tuple or list"):
        trace(model, 3.0)
    with pytest.raises(ValueError, match=r"both give \['input'\]"):
        trace(model, {"input": image(2, 3)}, example_kwargs={"input": image(2, 3)})
    with pytest.raises(TypeError, match=r"DataParallel; pass model\.module"):
        trace(nn.DataParallel(model), image(2, 3))
    with pytest.raises(TypeError, match=r"OptimizedModule; pass model\._orig_mod"):
        trace(torch.compile(model, backend="eager"), image(2, 3))
    with pytest.raises(TraceError, match="initialised parameters"):
        trace(nn.LazyLinear(3), image(2, 3))
    uncopyable = nn.Linear(3, 2)
    uncopyable.file = (i for i in range(3))
    with pytest.raises(TraceError, match=r"that copy\.deepcopy can copy"):
        trace(uncopyable, image(2, 3))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def encode(self, x, *, times=1):
        return self.b(self.a(x).relu()) * times


def test_a_model_used_in_another_way_than_by_its_forward():
    model, x = Encoder(), torch.randn(2, 3)
    with pytest.raises(TraceError):
        trace(model, x)  # it has no forward at all
    graph = trace(model, x, example_kwargs={"times": 3}, forward_fn=Encoder.encode)
    assert {g.name for g in graph.prunable} == {"a"}
    assert "not called" in graph.whole["c"]
    pruning = plan(graph, keep={"a": [0, 2, 5]})
    again = PruningPlan.from_json(pruning.to_json(), forward_fn=Encoder.encode)
    with pytest.raises(ValueError, match="forward"):
        PruningPlan.from_json(pruning.to_json()).apply(model)
    for made in (pruning, again):
        smaller = made.apply(model).model
        expected = model.b(model.a(x).relu() * torch.tensor([1.0, 0, 1, 0, 0, 1]))
        torch.testing.assert_close(smaller.encode(x), expected)
