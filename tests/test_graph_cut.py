"""Forms in which vision models write their layers: what is cut, and that it is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan
from networks import Run
from oracle import assert_same, random_plan, silence


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(i, o, k=1, **more):
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def pooled(s, x):
    return s.head(x.mean((2, 3)))


def glu(s, x):
    a, b = s.a(x).chunk(2, 1)
    return pooled(s, s.b(a * torch.sigmoid(b)))


def sections(s, x):
    widths = [layer.in_channels for layer in (s.b, s.c, s.d)]
    b, c, d = torch.split(s.a(x), widths, 1)
    return pooled(s, torch.cat([s.b(b), s.c(F.relu(c)) * s.d(d)], 1))


def halves(s, x):
    x, first = s.a(x), s.b.in_channels
    return pooled(s, s.b(x[:, :first]) + x[:, first:])


def selected(s, x):
    x = s.a(x.flatten(2).transpose(1, 2))
    return s.head(torch.cat([x[:, 0], F.gelu(s.b(x.select(1, -1)))], -1))


def shuffled_by_hand(s, x):
    x = torch.cat([s.a(x), s.b(x)], 1)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    return pooled(s, x)


def shuffled(s, x):
    return pooled(s, F.channel_shuffle(torch.cat([s.a(x), s.b(x)], 1), 2))


def space_to_depth(s, x):
    n, c, h, w = (x := s.a(x)).shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return pooled(s, s.b(x.reshape(n, c * 4, h // 2, w // 2)))


def patches_merged(s, x):
    x = s.a(x).permute(0, 2, 3, 1)
    x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    return s.head(s.b(x).mean((1, 2)))


def windows(s, x):
    """Partition into windows, attention with a table of biases by position, and back."""
    x = s.a(x).permute(0, 2, 3, 1)
    x = torch.roll(x, (-1, -1), (1, 2))
    n, h, w, c = x.shape
    x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = s.b(x).reshape(len(x), 4, 3, s.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    bias = s.table(s.index.view(-1)).view(4, 4, -1).permute(2, 0, 1)
    attention = torch.softmax(q * 4**-0.5 @ k.transpose(-2, -1) + bias, -1)
    x = s.c((attention @ v).transpose(1, 2).reshape(len(x), 4, -1))
    x = x.view(n, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
    return s.head(torch.roll(x, (1, 1), (1, 2)).mean((1, 2)))


class Table(nn.Module):
    """Biases [positions, heads] looked up by position."""

    def __init__(self, positions, heads):
        super().__init__()
        self.table = nn.Parameter(torch.randn(positions, heads))

    def forward(self, index):
        return self.table[index]


def windowed():
    made = Run(windows, a=conv(3, 7), b=nn.Linear(7, 36), c=nn.Linear(12, 5), table=Table(9, 3),
               head=nn.Linear(5, 2))  # fmt: skip
    made.num_heads = 3
    made.register_buffer("index", torch.arange(16) % 9)
    return made


def mixed(s, x):
    """MLP-mixer: tokens are mixed by a layer of their own."""
    x = s.a(x).flatten(2).transpose(1, 2)
    x = x + s.d(F.gelu(s.c(s.norm(x).transpose(1, 2)))).transpose(1, 2)
    return s.head((x + s.f(F.gelu(s.e(x)))).mean(1))


def class_token(s, x):
    x = s.a(x).flatten(2).transpose(1, 2)
    x = torch.cat([s.token.expand(len(x), -1, -1), x], 1) + s.position
    return s.head(s.norm(x)[:, 0])


def tokens():
    made = Run(class_token, a=conv(3, 7), norm=nn.LayerNorm(7), head=nn.Linear(7, 2))
    made.token = nn.Parameter(torch.randn(1, 1, 7))
    made.position = nn.Parameter(torch.randn(1, 37, 7))
    return made


def across_channels(s, x):
    """XCiT: attention between the channels of a head, from normalised q and k."""
    x = s.a(x).flatten(2).transpose(1, 2)
    n, t, _ = x.shape
    q, k, v = s.b(x).reshape(n, t, 3, s.num_heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = torch.softmax(q @ k.transpose(-2, -1) * s.temperature, -1)
    return s.head(s.c((attention @ v).permute(0, 3, 1, 2).reshape(n, t, -1)).mean(1))


def cross_covariance():
    made = Run(across_channels, a=conv(3, 7), b=nn.Linear(7, 36), c=nn.Linear(12, 5),
               head=nn.Linear(5, 2))  # fmt: skip
    made.num_heads, made.temperature = 3, nn.Parameter(torch.rand(3, 1, 1))
    return made


def split_attention(s, x):
    """ResNeSt: two branches in groups, weighed by a softmax over the branches."""
    x = F.relu(s.a(x))
    n, c, h, w = (x := F.relu(s.b(x))).shape
    x = x.reshape(n, 2, c // 2, h, w)
    gap = s.d(F.relu(s.c(x.sum(1).mean((2, 3), keepdim=True))))
    gap = torch.softmax(gap.view(n, 1, 2, -1).transpose(1, 2), 1).reshape(n, -1, 1, 1)
    return pooled(s, (x * gap.reshape(n, 2, c // 2, 1, 1)).sum(1))


def selective(s, x):
    """SKNet: branches stacked, weighed by a softmax over them."""
    x = torch.stack([F.relu(s.a(x)), F.relu(s.b(x))], 1)
    weight = s.d(F.relu(s.c(x.sum(1).mean((2, 3), keepdim=True))))
    n, c = weight.shape[:2]
    weight = torch.softmax(weight.view(n, 2, c // 2, 1, 1), 1)
    return pooled(s, (x * weight).sum(1))


def with_heads(forward, **modules):
    made = Run(forward, **modules)
    made.num_heads = 3
    return made


def einsum(s, x):
    x = s.a(x).flatten(2).transpose(1, 2)
    q, k, v = (layer(x).unflatten(-1, (s.num_heads, -1)) for layer in (s.b, s.c, s.d))
    weight = torch.einsum("bqhe,bkhe->bhqk", q, k).softmax(-1)
    return s.head(torch.einsum("bhqk,bkhe->bqhe", weight, v).flatten(2).mean(1))


def partly_residual(s, x):
    """ReXNet: the shortcut is added to the first channels of a wider block."""
    x, first = s.a(x), s.in_channels
    y = s.b(x)
    return pooled(s, torch.cat([y[:, :first] + x, y[:, first:]], 1))


def by_sections(s, x):
    """InceptionNeXt: pieces with sizes in a tuple go through depthwise convolutions."""
    b, c, d = torch.split(s.a(x), s.split_indexes, 1)
    return pooled(s, torch.cat([b, s.c(c), s.d(d)], 1))


def with_attributes(forward, attributes, **modules):
    made = Run(forward, **modules)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def reduced_keys(s, x):
    """PVT: keys and values from fewer tokens, the width of all heads taken from the input."""
    n, c, h, w = x.shape
    x = x.flatten(2).transpose(1, 2)
    q = s.q(x).reshape(n, h * w, s.num_heads, c // s.num_heads).permute(0, 2, 1, 3)
    y = s.r(x.permute(0, 2, 1).reshape(n, c, h, w)).reshape(n, c, -1).permute(0, 2, 1)
    kv = s.kv(y).reshape(n, -1, 2, s.num_heads, c // s.num_heads).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, kv[0], kv[1])
    return x + s.o(y.transpose(1, 2).reshape(n, h * w, c))


def talking_heads(s, x):
    """One number of heads for scores before and after layers that mix them."""
    x = s.a(x).flatten(2).transpose(1, 2)
    n, t, _ = x.shape
    q, k, v = (f(x).view(n, t, s.num_heads, -1).transpose(1, 2) for f in (s.q, s.k, s.v))
    scores = s.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return s.head((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1).mean(1))


def doubled(s, x):
    """Equalised learning rates: a layer multiplies its weight by a number in every forward."""
    return s.head(F.relu(F.conv2d(x, s.a.weight * 0.5, s.a.bias * 2)).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised per output channel in every forward."""

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


FORMS = {
    "glu": (lambda: Run(glu, a=conv(3, 14), b=conv(7, 5), head=nn.Linear(5, 2)), {"a": 7, "b": 5}),
    "sections": (
        lambda: Run(
            sections, a=conv(3, 14), b=conv(5, 4), c=conv(3, 7), d=conv(6, 7),
            head=nn.Linear(11, 2),
        ),
        {"a": 5, "a#2": 3, "a#3": 6, "b": 4, "c": 7},
    ),
    "halves": (
        lambda: Run(halves, a=conv(3, 11), b=conv(6, 5), head=nn.Linear(5, 2)),
        {"a": 6, "a#2": 5},
    ),
    "select": (
        lambda: Run(selected, a=nn.Linear(3, 7), b=nn.Linear(7, 5), head=nn.Linear(12, 2)),
        {"a": 7, "b": 5},
    ),
    "select for its shape": (
        lambda: Run(
            lambda s, x: pooled(s, (h := s.a(x)) * len(h[:, -1])), a=conv(3, 7),
            head=nn.Linear(7, 2),
        ),
        {"a": 7},
    ),
    "grouped": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.relu(s.a(x)))),
            a=conv(3, 15), b=conv(15, 9, 3, groups=3), head=nn.Linear(9, 2),
        ),
        {"a": 3, "a#2": 5, "b": 3},
    ),
    "grouped transposed": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.relu(s.a(x)))),
            a=conv(3, 15), b=nn.ConvTranspose2d(15, 9, 3, groups=3), head=nn.Linear(9, 2),
        ),
        {"a": 3, "a#2": 5, "b": 3},
    ),
    "group norm": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.relu(s.norm(s.a(x))))),
            a=conv(3, 15), norm=nn.GroupNorm(5, 15), b=conv(15, 7), head=nn.Linear(7, 2),
        ),
        {"a": 5, "b": 7},
    ),
    "pixel shuffle": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.pixel_shuffle(s.a(x), 2))),
            a=conv(3, 20), b=conv(5, 3), head=nn.Linear(3, 2),
        ),
        {"a": 5, "b": 3},
    ),
    "pixel unshuffle": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.pixel_unshuffle(s.a(x), 2))),
            a=conv(3, 5), b=conv(20, 3), head=nn.Linear(3, 2),
        ),
        {"a": 5, "b": 3},
    ),
    "channel shuffle": (
        lambda: Run(shuffled, a=conv(3, 7), b=conv(3, 7), head=nn.Linear(14, 2)), {"a": 7},
    ),
    "shuffled by hand": (
        lambda: Run(shuffled_by_hand, a=conv(3, 7), b=conv(3, 7), head=nn.Linear(14, 2)), {"a": 7},
    ),
    "space to depth": (
        lambda: Run(space_to_depth, a=conv(3, 5), b=conv(20, 7), head=nn.Linear(7, 2)),
        {"a": 5, "b": 7},
    ),
    "patches merged": (
        lambda: Run(patches_merged, a=conv(3, 5), b=nn.Linear(20, 7), head=nn.Linear(7, 2)),
        {"a": 5, "b": 7},
    ),
    "windows": (windowed, {"a": 7, "b#2": 3, "c": 5}),
    "tokens mixed": (
        lambda: Run(
            mixed, a=conv(3, 7), norm=nn.LayerNorm(7), c=nn.Linear(36, 5), d=nn.Linear(5, 36),
            e=nn.Linear(7, 9), f=nn.Linear(9, 7), head=nn.Linear(7, 2),
        ),
        {"a": 7, "c": 5, "e": 9},
    ),
    "class token": (tokens, {"a": 7}),
    "cross covariance": (cross_covariance, {"a": 7, "b": 3, "c": 5}),
    "split attention": (
        lambda: Run(
            split_attention, a=conv(3, 6), b=conv(6, 10, 3, groups=2), c=conv(5, 7),
            d=conv(7, 10), head=nn.Linear(5, 2),
        ),
        {"a#2": 3, "b": 5, "c": 7},
    ),
    "selective kernels": (
        lambda: Run(
            selective, a=conv(3, 5), b=conv(3, 5, 3), c=conv(5, 7), d=conv(7, 10),
            head=nn.Linear(5, 2),
        ),
        {"a": 5, "c": 7},
    ),
    "einsum": (
        lambda: with_heads(
            einsum, a=conv(3, 7), b=nn.Linear(7, 12), c=nn.Linear(7, 12), d=nn.Linear(7, 12),
            head=nn.Linear(12, 2),
        ),
        {"a": 7, "b": 3, "d": 4},
    ),
    "standardised weights": (
        lambda: Run(
            lambda s, x: pooled(s, s.b(F.relu(s.a(x)))),
            a=Standardised(3, 7, 3), b=conv(7, 5), head=nn.Linear(5, 2),
        ),
        {"a": 7, "b": 5},
    ),
    "partly residual": (
        lambda: with_attributes(
            partly_residual, {"in_channels": 5}, a=conv(3, 5), b=conv(5, 12), head=nn.Linear(12, 2),
        ),
        {"a": 5, "b": 7},
    ),
    "by sections": (
        lambda: with_attributes(
            by_sections, {"split_indexes": (5, 3, 3)}, a=conv(3, 11), c=conv(3, 3, 3, groups=3),
            d=conv(3, 3, 3, groups=3), head=nn.Linear(11, 2),
        ),
        {"a": 5, "a#2": 3, "a#3": 3},
    ),
    "reduced keys": (
        lambda: Run(
            lambda s, x: s.head(s.attention(s.a(x)).mean(1)), a=conv(3, 12), head=nn.Linear(12, 2),
            attention=with_attributes(
                reduced_keys, {"num_heads": 3}, q=nn.Linear(12, 12), r=nn.Conv2d(12, 12, 2, 2),
                kv=nn.Linear(12, 24), o=nn.Linear(12, 12),
            ),
        ),
        {"a": 3},
    ),
    "talking heads": (
        lambda: with_attributes(
            talking_heads, {"num_heads": 5}, a=conv(3, 7), q=nn.Linear(7, 10), k=nn.Linear(7, 10),
            v=nn.Linear(7, 15), mix=nn.Linear(5, 5), head=nn.Linear(15, 2),
        ),
        {"a": 7, "q": 5, "v": 3},
    ),
    "unfolded and folded": (
        lambda: Run(
            lambda s, x: pooled(s, F.fold(s.b(F.unfold(s.a(x), 3)).relu(), (6, 6), 3)),
            a=conv(3, 5), b=nn.Conv1d(45, 63, 1), head=nn.Linear(7, 2),
        ),
        {"a": 5, "b": 7},
    ),
    "weights times a number": (
        lambda: Run(doubled, a=conv(3, 7), head=nn.Linear(7, 2)), {"a": 7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_cut_exactly(name):
    torch.manual_seed(0)
    build, expected = FORMS[name]
    model, x = build().double().eval(), image(2, 3, 6, 6)
    graph = trace(model, x)
    assert {group.name: group.channels for group in graph.prunable} == expected, graph.describe()
    for seed in range(3):
        pruning = random_plan(graph, seed)
        with torch.no_grad():
            small = pruning.apply(model).model(x)
            assert_same(small, silence(model, pruning)(x), 1e-10)


def test_standardised_weights_are_standardised_over_what_is_left():
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(3, 7), Standardised(7, 5, 3, padding=1), nn.Flatten(), nn.Linear(180, 2)
    )
    model, x = model.double().eval(), image(2, 3, 6, 6)
    graph = trace(model, x)
    first = graph.group("0")
    assert first.renormalised == ("batch_norm in '1'",)
    keep = torch.tensor([0, 2, 3, 6])
    small = plan(graph, keep={"0": keep}).apply(model).model
    weight = model[1].weight[:, keep].flatten(1)
    spread = (weight.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    weight = (weight - weight.mean(1, keepdim=True)) / spread
    made = F.conv2d(model[0](x)[:, keep], weight.reshape(5, 4, 3, 3), model[1].bias, padding=1)
    assert_same(small(x), model[3](model[2](made)), 1e-10)


class Encoder(nn.Module):
    def __init__(self, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            12, 3, 10, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 2)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.layers(self.embed(x)))


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_of_torch_keeps_its_heads_as_wide_as_what_it_reads(norm_first):
    """Its code takes the width of all heads from its input: whole heads go with their channels."""
    torch.manual_seed(0)
    model, x = Encoder(norm_first).double().eval(), image(2, 4, 5)
    graph = trace(model, x)
    assert {g.name: g.channels for g in graph.prunable} == {
        "embed": 3, "layers.layers.0.linear1": 10, "layers.layers.1.linear1": 10,
    }  # fmt: skip
    assert {s.index_map.run for s in graph.group("embed").slices} == {4}
    pruning = random_plan(graph, 1)
    small, silenced = pruning.apply(model).model, silence(model, pruning)
    assert (
        small.layers.layers[0].self_attn.embed_dim == 4 * small.layers.layers[0].self_attn.num_heads
    )
    assert_same(small(x), silenced(x), 1e-10)
    with torch.no_grad():  # another code of torch runs
        assert_same(small(x), silenced(x), 1e-10)


def test_attention_between_two_inputs():
    model = Run(
        lambda s, x: s.head(s.attention(s.a(x[:, :3]), (h := s.b(x)), h, need_weights=False)[0]),
        a=nn.Linear(4, 12), b=nn.Linear(4, 12), head=nn.Linear(12, 2),
        attention=nn.MultiheadAttention(12, 3, batch_first=True),
    ).double().eval()  # fmt: skip
    x = image(2, 5, 4)
    graph = trace(model, x)
    assert {g.name: g.channels for g in graph.prunable} == {"a": 3, "attention.out_proj": 12}
