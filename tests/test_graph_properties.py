"""Random small networks, cut at random: sliced equals silenced, and other properties of plans."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice import PruningPlan, plan, trace
from networks import Run
from oracle import assert_same, random_plan, silence

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

# Blocks: name -> function (draw, width) -> (module, width after it). Images are [N, C, 4, 4].


def pick(draw, *choices):
    return draw(st.sampled_from(choices))


def divisor(draw, width):
    return draw(st.sampled_from([d for d in range(1, width + 1) if width % d == 0]))


def conv(draw, c):
    groups, kernel = divisor(draw, c), pick(draw, 1, 3)
    out = groups * pick(draw, 1, 2, 3)
    kind = pick(draw, nn.Conv2d, nn.ConvTranspose2d)
    return kind(
        c, out, kernel, padding=kernel // 2, groups=groups, bias=pick(draw, True, False)
    ), out


def norm(draw, c):
    made = (
        nn.BatchNorm2d(c), nn.GroupNorm(1, c), nn.GroupNorm(divisor(draw, c), c),
        nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
        Run(lambda s, x: s.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(c)),
    )  # fmt: skip
    return made[pick(draw, *range(len(made)))], c


def activation(draw, c):
    return pick(draw, nn.ReLU(), nn.SiLU(), nn.PReLU(c), nn.Sigmoid()), c


def residual(draw, c):
    inside, width = conv(draw, c)
    return Run(lambda s, x: x + s.back(s.f(x).relu()), f=inside, back=nn.Conv2d(width, c, 1)), c


def joined(draw, c):
    inside, width = conv(draw, c)
    first = pick(draw, True, False)
    return Run(
        lambda s, x: torch.cat([x, s.f(x)] if first else [s.f(x), x], 1), f=inside
    ), c + width


def gated(draw, c):
    width = pick(draw, 2, 3, 5)
    return Run(
        lambda s, x: (h := s.f(x).chunk(2, 1))[0] * h[1].sigmoid(), f=nn.Conv2d(c, 2 * width, 1)
    ), width


def excited(draw, c):
    return Run(
        lambda s, x: x * s.up(s.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        down=nn.Conv2d(c, 3, 1), up=nn.Conv2d(3, c, 1),
    ), c  # fmt: skip


def shuffled(draw, c):
    g = divisor(draw, c)
    if pick(draw, True, False):
        return nn.ChannelShuffle(g), c
    return Run(
        lambda s, x: x.view(len(x), g, x.shape[1] // g, 4, 4).transpose(1, 2).reshape(x.shape)
    ), c


def folded(draw, c):
    width = pick(draw, 1, 2, 3)
    return Run(
        lambda s, x: F.pixel_shuffle(F.max_pool2d(s.f(x), 2), 2), f=nn.Conv2d(c, 4 * width, 1)
    ), width


def taken_apart(draw, c):
    first = pick(draw, 1, 2, 3)
    return Run(
        lambda s, x: torch.cat([(h := s.f(x).split([first, 4], 1))[1].relu(), s.g(h[0])], 1),
        f=nn.Conv2d(c, first + 4, 1), g=nn.Conv2d(first, 2, 1),
    ), 6  # fmt: skip


def twice(draw, c):
    return Run(lambda s, x: s.f(s.f(x).relu()), f=nn.Conv2d(c, c, 1)), c


IMAGE = (
    conv,
    norm,
    activation,
    residual,
    joined,
    gated,
    excited,
    shuffled,
    folded,
    taken_apart,
    twice,
)


class Heads(nn.Module):
    """Attention with grouped keys and values, as models of language write it."""

    def __init__(self, c, kv, repeats, width, normalised):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.n_rep = kv * repeats, kv, repeats
        self.head_dim = width
        self.q, self.o = nn.Linear(c, kv * repeats * width), nn.Linear(kv * repeats * width, c)
        self.k, self.v = nn.Linear(c, kv * width), nn.Linear(c, kv * width)
        self.norm = nn.LayerNorm(width) if normalised else nn.Identity()

    def forward(self, x):
        n, t, _ = x.shape
        q = self.norm(self.q(x).view(n, t, self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = (
            f(x).view(n, t, self.num_kv_heads, 1, self.head_dim)
            .expand(-1, -1, -1, self.n_rep, -1).reshape(n, t, self.num_heads, self.head_dim)
            .transpose(1, 2)
            for f in (self.k, self.v)
        )  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(y.transpose(1, 2).reshape(n, t, -1))


class ByHand(nn.Module):
    """A root-mean-square norm written out."""

    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def linear(draw, c):
    out = pick(draw, 2, 3, 6)
    return nn.Linear(c, out, bias=pick(draw, True, False)), out


def token_norm(draw, c):
    return pick(draw, nn.LayerNorm(c), nn.RMSNorm(c), ByHand(c)), c


def heads(draw, c):
    return Heads(
        c, pick(draw, 1, 2, 3), pick(draw, 1, 2), pick(draw, 2, 4), pick(draw, True, False)
    ), c


def mlp(draw, c):
    width = pick(draw, 3, 4)
    if pick(draw, True, False):
        return Run(
            lambda s, x: x + s.down(F.silu(s.gate(x)) * s.up(x)),
            gate=nn.Linear(c, width), up=nn.Linear(c, width), down=nn.Linear(width, c),
        ), c  # fmt: skip
    return Run(
        lambda s, x: x + s.down((h := s.both(x).chunk(2, -1))[1] * F.gelu(h[0])),
        both=nn.Linear(c, 2 * width), down=nn.Linear(width, c),
    ), c  # fmt: skip


def mixed_tokens(draw, c):
    return Run(
        lambda s, x: x + s.b(s.a(x.transpose(1, 2)).relu()).transpose(1, 2),
        a=nn.Linear(4, 5), b=nn.Linear(5, 4),
    ), c  # fmt: skip


TOKENS = (linear, token_norm, heads, mlp, mixed_tokens)


@st.composite
def networks(draw):
    """A model in float64 whose parameters are far from zero and one, and an input of it."""
    image = draw(st.booleans())
    width = draw(st.integers(2, 6))
    layers = [nn.Conv2d(2, width, 3, padding=1) if image else nn.Embedding(7, width)]
    names = ["in"]
    for _ in range(draw(st.integers(1, 4))):
        block = draw(st.sampled_from(IMAGE if image else TOKENS))
        layer, width = block(draw, width)
        layers.append(layer)
        names.append(block.__name__)
    if image and draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3)]
    else:
        layers.append(nn.Conv2d(width, 3, 1) if image else nn.Linear(width, 3))
    model = nn.Sequential(*layers).double().eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.1
                )
                if tensor.dim() > 1:
                    tensor.sub_(0.6)
    hypothesis.note(" > ".join(names))
    if image:
        return model, torch.rand(2, 2, 4, 4, generator=generator, dtype=torch.float64)
    return model, torch.randint(7, (2, 4), generator=generator)


def run(model, x):
    with torch.no_grad():
        return model(x)


def halves(graph, seed):
    """Two plans one after the other, as channels kept: of the whole, and of what is left."""
    generator = torch.Generator().manual_seed(seed)
    first, second = {}, {}
    for group in graph.prunable:
        left = math.ceil(group.channels * 3 / 4)
        first[group.name] = torch.randperm(group.channels, generator=generator)[:left].sort().values
        second[group.name] = (
            torch.randperm(left, generator=generator)[: -(-left // 2)].sort().values
        )
    return first, second


quick = hypothesis.settings(
    deadline=None, max_examples=60, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


@quick
@hypothesis.given(networks(), st.integers(0, 99))
def test_sliced_equals_silenced(network, seed):
    model, x = network
    graph = trace(model, x)
    pruning = random_plan(graph, seed)
    smaller = pruning.apply(model).model
    assert_same(run(smaller, x), run(silence(model, pruning), x), 1e-9)
    shapes = {name: tuple(t.shape) for name, t in smaller.state_dict().items()}
    assert shapes == {name: pruning.new_shapes()[name] for name in shapes}
    on_meta = pruning.apply(copy.deepcopy(model).to("meta")).model
    assert {name: tuple(t.shape) for name, t in on_meta.state_dict().items()} == shapes
    again = PruningPlan.from_json(pruning.to_json())
    assert {name: k.tolist() for name, k in again.keep.items()} == {
        name: k.tolist() for name, k in pruning.keep.items()
    }
    for name, tensor in again.apply(model).model.state_dict().items():
        assert torch.equal(tensor, smaller.state_dict()[name])


@quick
@hypothesis.given(networks(), st.integers(0, 99))
def test_slicing_twice_is_slicing_by_the_composition(network, seed):
    model, x = network
    graph = trace(model, x)
    first, second = halves(graph, seed)
    once = plan(graph, keep=first).apply(model).model
    graph_once = trace(once, x)
    left = {g.name: g.channels for g in graph_once.prunable}
    # A group of one channel left is none any more.
    second = {n: k for n, k in second.items() if n in left and left[n] == len(first[n])}
    twice = plan(graph_once, keep=second).apply(once).model
    both = {n: first[n][second[n]] if n in second else first[n] for n in first}
    straight = plan(graph, keep=both).apply(model).model
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name]), name


@quick
@hypothesis.given(networks())
def test_every_group_goes_down_to_one_channel(network):
    model, x = network
    graph = trace(model, x)
    pruning = plan(graph, keep={g.name: [g.channels - 1] for g in graph.prunable})
    assert_same(run(pruning.apply(model).model, x), run(silence(model, pruning), x), 1e-9)
