"""Attention in the forms that language models write it in: what is cut, and that it is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan
from oracle import assert_same, random_plan, silence

WIDTH = 8


def expanded(x, times):
    if times == 1:
        return x
    n, heads, length, width = x.shape
    x = x[:, :, None].expand(n, heads, times, length, width)
    return x.reshape(n, heads * times, length, width)


def plain(q, k, v, times):
    """Scores, softmax, values: the code of every tutorial."""
    scores = q @ expanded(k, times).transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(scores, -1) @ expanded(v, times)


def repeated(q, k, v, times):
    k, v = (t.repeat_interleave(times, dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def fused(q, k, v, times):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=times > 1)


FORMS = {form.__name__: form for form in (plain, repeated, fused)}


class Attention(nn.Module):
    """``heads`` query heads share ``kv_heads`` heads of keys and values."""

    def __init__(self, heads, kv_heads, attend):
        super().__init__()
        self.num_heads, self.num_key_value_heads = heads, kv_heads
        self.num_key_value_groups, self.head_dim = heads // kv_heads, WIDTH
        self.q_proj = nn.Linear(12, heads * WIDTH)
        self.k_proj = nn.Linear(12, kv_heads * WIDTH)
        self.v_proj = nn.Linear(12, kv_heads * WIDTH)
        self.o_proj = nn.Linear(heads * WIDTH, 12)
        self.attend = attend

    def split(self, x):
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def forward(self, x):
        q, k, v = (self.split(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        made = self.attend(q, k, v, self.num_key_value_groups)
        return self.o_proj(made.transpose(1, 2).contiguous().flatten(2))


def network(*modules):
    torch.manual_seed(0)
    model = nn.Sequential(*[module() for module in modules])
    return model.double(), torch.randn(2, 5, 12, dtype=torch.double)


def sliced_is_silenced(model, x, pruning):
    small = pruning.apply(model).model
    with torch.no_grad():
        assert_same(small(x), silence(model, pruning)(x), 1e-12)
    return small


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (16, 2), (8, 2)])
def test_heads(form, heads, kv_heads):
    """Heads of keys and values, and of the queries of each, may go down to one."""
    model, x = network(lambda: Attention(heads, kv_heads, FORMS[form]))
    graph = trace(model, x)
    sizes = {group.channels for group in graph.prunable}
    assert sizes == {n for n in (kv_heads, heads // kv_heads) if n > 1}
    for seed in range(3):
        sliced_is_silenced(model, x, random_plan(graph, seed))
    last = {group.name: [group.channels - 1] for group in graph.prunable}
    small = sliced_is_silenced(model, x, plan(graph, keep=last))[0]
    assert small.q_proj.out_features == small.o_proj.in_features == WIDTH
    assert small.num_key_value_groups == 1
    assert small.head_dim == WIDTH


class Cache:
    """Keys and values of the positions seen, as the caches of transformers keep them."""

    def __init__(self):
        self.keys = torch.tensor([])

    def update(self, keys):
        self.keys = torch.cat([self.keys, keys], dim=-2)
        return self.keys

    def get_seq_length(self):
        return self.keys.shape[-2]


class Cached(Attention):
    def forward(self, x):
        cache = Cache()
        q, k, v = (self.split(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        made = self.attend(q, cache.update(k), v, self.num_key_value_groups)
        return {"logits": self.o_proj(made.transpose(1, 2).flatten(2)), "cache": cache}


def test_a_cache_is_no_output():
    model, x = network(lambda: Cached(4, 2, fused))
    graph = trace(model, x)
    assert {group.channels for group in graph.prunable} == {2}
    sliced_is_silenced(model, x, random_plan(graph, 0))


def test_tensors_returned_beside_the_result_are_outputs():
    class Returned(Cached):
        def forward(self, x):
            made = super().forward(x)
            return made["logits"], made["cache"].keys

    model, x = network(lambda: Returned(4, 2, fused))
    assert not any(g.channels == 2 for g in trace(model, x).prunable if "k_proj" in g.producers)


@pytest.mark.parametrize("name", ["encoder_last_hidden_state", "features"])
def test_states_on_the_way_are_no_outputs_of_encoders_and_decoders(name):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x):
            states = self.encoder(x)
            return {"logits": self.decoder(states), name: states}

    graph = trace(Both(), torch.randn(2, 12))
    assert graph.group("encoder").prunable == (name != "features")


def test_what_is_taken_for_its_shape_alone_couples_nothing():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.table, self.last = (
                nn.Linear(12, 8), nn.Embedding(9, 8), nn.Linear(8, 3),
            )  # fmt: skip

        def forward(self, x):
            x = self.first(x)
            positions = x[:, :, -1]
            return self.last(x + self.table(torch.arange(positions.shape[1])))

    model, x = network(Positions)
    graph = trace(model, x)
    sliced_is_silenced(model, x, plan(graph, keep={"0.first": [0, 2, 5]}))


class Bias(nn.Module):
    """A table of biases by distance, read by a method that is not forward."""

    def __init__(self, length, heads):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * length - 1, heads))
        self.bias_shape = (length, length, heads)
        places = torch.arange(length)
        self.register_buffer("index", places[:, None] - places + length - 1)

    def get_bias(self):
        return self.table[self.index.view(-1)].view(self.bias_shape).permute(2, 0, 1)


class Biased(nn.Module):
    """Biases on the scores, and a bias of the keys that is zeroed in place before use."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.bias = 6, Bias(5, 6)
        self.qkv, self.proj = nn.Linear(12, 3 * 6 * WIDTH), nn.Linear(6 * WIDTH, 12)

    def forward(self, x):
        n, t, _ = x.shape
        bias = self.qkv.bias.clone()
        length = bias.numel() // 3
        bias[length : 2 * length].zero_()
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(n, t, 3, self.num_heads, WIDTH).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) + self.bias.get_bias()).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(n, t, -1))


def test_biases_follow_the_heads():
    model, x = network(Biased, lambda: nn.Linear(12, 3))
    graph = trace(model, x)
    assert graph.group("0.qkv").channels == 6
    assert graph.group("0.qkv").prunable, graph.group("0.qkv").reason
    small = sliced_is_silenced(model, x, plan(graph, keep={"0.qkv": [0, 2, 3, 5]}))
    assert small[0].bias.bias_shape == (5, 5, 4)
    assert small[0].bias.table.shape == (9, 4)
    assert small[0].num_heads == 4
