"""What a model costs at given widths, and channels chosen under a budget."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infoslice import trace
from infoslice.graph import latency
from infoslice.selection import per_cost, select, uniform_ratio
from networks import MODELS, Dense, PlainCNN, Residual, inputs, make
from oracle import random_plan


class Attention(nn.Module):
    """Heads that go as a whole, keys shared by two heads each, and a mixture by einsum."""

    shape = (2, 5, 8)

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 6)
        self.o, self.experts = nn.Linear(12, 8), nn.Parameter(torch.randn(4, 8, 7) / 3)
        self.out = nn.Linear(7, 2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = x + self.o(y.transpose(1, 2).flatten(2))
        y = torch.einsum("BsI,eIj,Bte->Bsj", y, self.experts, torch.softmax(y[..., :4], -1))
        y = self.out(y)
        return torch.einsum("...ij,...kj->...ik", y, y) @ y


class Recurrent(nn.Module):
    shape = (2, 4, 5)

    def __init__(self):
        super().__init__()
        self.a, self.r, self.b = nn.Linear(5, 6), nn.GRU(6, 3), nn.Linear(3, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(F.relu(self.b(self.r(self.a(x))[0])))


def counted(model, x):
    """Multiply-accumulates by torch's own counter, of plain code only: others it cannot see."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", [*MODELS, Attention, Recurrent])
def test_costs_are_those_of_the_model_before_and_after_surgery(kind):
    model, x = make(kind), inputs(kind)
    graph = trace(model, x)
    plan = random_plan(graph, 3)
    for net, keep in ((model, None), (plan.apply(model).model, plan.keep)):
        tensors = [*net.parameters(), *net.buffers()]
        assert graph.costs.parameters(keep) == sum(p.numel() for p in net.parameters())
        assert graph.costs.memory(keep) == sum(t.numel() * t.itemsize for t in tensors)
        assert graph.costs.macs(keep) == counted(net, x)


def test_costs_at_many_widths_and_of_numbers_kept():
    graph = trace(make(Residual), inputs(Residual))
    costs = graph.costs
    names = dict(zip(costs.groups, costs.channels.tolist(), strict=True))
    one = {name: 1 for name in names}
    both = costs.at("macs", torch.stack([torch.ones(len(names)), torch.tensor(list(names.values()))
        ]).long().numpy())  # fmt: skip
    assert both.tolist() == [costs.macs(one), costs.macs()]
    with pytest.raises(ValueError, match=r"1 to \d+ channels of .*, got 0"):
        costs.macs({costs.groups[0]: 0})
    with pytest.raises(ValueError, match="prunable groups, got 'nobody'"):
        costs.macs({"nobody": 1})


def scores_of(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.channels, generator=generator) for g in graph.prunable}


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("cost", ["parameters", "macs", "memory"])
@pytest.mark.parametrize("kind", [PlainCNN, Residual, Dense, Attention])
def test_a_budget_is_met_with_as_few_channels_gone_as_can_be(kind, cost, allocation):
    graph = trace(make(kind), inputs(kind))
    of, scores = getattr(graph.costs, cost), scores_of(graph)
    options = {"graph": graph, "allocation": allocation, "max_pruning_ratio": 0.99}
    keep = select(scores, budget={cost: "60%"}, **options)
    reached = of(keep)
    assert reached <= 0.6 * of()
    again = select(scores, budget={cost: reached}, **options)
    assert all(torch.equal(again[name], kept) for name, kept in keep.items())
    tighter = select(scores, budget={cost: reached - 1}, **options)
    assert of(tighter) < reached
    if allocation == "global":  # with the best channel that went given back, it is not met
        lost = {n: set(range(len(scores[n]))) - set(kept.tolist()) for n, kept in keep.items()}
        best = max((scores[n][c].item(), n) for n, gone in lost.items() for c in gone)[1]
        assert of({n: len(kept) + (n == best) for n, kept in keep.items()}) > 0.6 * of()


def test_several_budgets_are_all_met():
    graph = trace(make(PlainCNN), inputs(PlainCNN))
    keep = select(
        scores_of(graph), budget={"macs": "80%", "parameters": graph.costs.parameters() // 2},
        graph=graph,
    )  # fmt: skip
    assert graph.costs.macs(keep) <= 0.8 * graph.costs.macs()
    assert graph.costs.parameters(keep) <= graph.costs.parameters() // 2


def test_the_budget_holds_after_rounding_and_within_the_cap():
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(),
                          nn.Linear(24, 3))  # fmt: skip
    graph = trace(model, torch.zeros(1, 10))
    for allocation in ("global", "uniform"):
        keep = select(
            scores_of(graph), budget={"parameters": "50%"}, graph=graph, round_to=8,
            max_pruning_ratio=0.7, allocation=allocation,
        )  # fmt: skip
        assert graph.costs.parameters(keep) <= graph.costs.parameters() // 2
        assert all(len(kept) % 8 == 0 for kept in keep.values())
        assert len(keep["0"]) >= 64 * 0.3
        assert len(keep["2"]) >= 24 * 0.3


def test_heads_are_rounded_by_the_width_they_have():
    graph = trace(make(Attention), inputs(Attention))
    heads = next(g for g in graph.prunable if g.channels == 2)
    keep = select({heads.name: torch.tensor([1.0, 0.0])}, 0.5, graph=graph, round_to=3)
    assert keep[heads.name].tolist() == [0]


class Experts(nn.Module):
    """Rows in the order of their experts; the kernel wants rows of a multiple of 16 bytes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.up, self.down = (
            nn.Parameter(torch.randn(3, 16, 32)),
            nn.Parameter(torch.randn(3, 32, 8)),
        )

    def forward(self, x, ends):
        y = F.grouped_mm(self.a(x), self.up, offs=ends)
        return F.grouped_mm(F.relu(y), self.down, offs=ends)


def test_a_kernel_that_wants_multiples_gets_them():
    x, ends = torch.randn(12, 8), torch.tensor([4, 8, 12], dtype=torch.int32)
    graph = trace(Experts(), (x, ends))
    assert {group.step for group in graph.prunable} == {4}
    assert "prunable, kept in multiples of 4" in graph.describe()
    keep = select(scores_of(graph), budget={"macs": "60%"}, graph=graph)
    assert all(len(kept) % 4 == 0 for kept in keep.values())
    assert graph.costs.macs() == 12 * (8 * 16 + 16 * 32 + 32 * 8)
    assert 0 < graph.costs.macs(keep) <= 0.6 * graph.costs.macs()


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_budget_out_of_reach_names_the_least_that_can_be_had(allocation):
    graph = trace(make(PlainCNN), inputs(PlainCNN))
    scores = scores_of(graph)
    least = graph.costs.macs({name: 1 for name in scores})
    options = {"graph": graph, "allocation": allocation}
    keep = select(scores, budget={"macs": least}, **options)
    assert all(len(kept) == 1 for kept in keep.values())
    with pytest.raises(ValueError, match=f"at most {least - 1:,} macs, got {least:,} at the least"):
        select(scores, budget={"macs": least - 1}, **options)


def test_the_uniform_ratio_meets_the_budget_without_scores():
    graph = trace(make(Residual), inputs(Residual))
    ratio = uniform_ratio(graph, {"macs": "50%"})
    keep = select(scores_of(graph), ratio, graph=graph, allocation="uniform")
    assert graph.costs.macs(keep) <= 0.5 * graph.costs.macs()
    by_budget = select(scores_of(graph), budget={"macs": "50%"}, graph=graph, allocation="uniform")
    assert all(torch.equal(by_budget[name], kept) for name, kept in keep.items())


def test_own_ratios_by_group_module_and_pattern():
    graph = trace(make(Residual), inputs(Residual))
    scores = scores_of(graph)
    first = graph.prunable[0]
    own = {"*": 0.5, first.name: 0}
    keep = select(scores, 0.0, graph=graph, pruning_ratio_dict=own)
    assert len(keep[first.name]) == first.channels
    for group in graph.prunable[1:]:
        assert len(keep[group.name]) == group.channels - group.channels // 2
    keep = select(scores, budget={"macs": "70%"}, graph=graph, pruning_ratio_dict={first.name: 0})
    assert len(keep[first.name]) == first.channels
    assert graph.costs.macs(keep) <= 0.7 * graph.costs.macs()
    with pytest.raises(ValueError, match=r"modules of groups, got \['nobody'\]"):
        select(scores, 0.5, graph=graph, pruning_ratio_dict={"nobody": 0.1})
    with pytest.raises(ValueError, match="module paths need the argument graph"):
        select({"a": torch.ones(3)}, 0.5, pruning_ratio_dict={"layer": 0.1})


def test_scores_per_cost_take_the_dear_channel_first():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 4), nn.ReLU(),
                          nn.Conv2d(8, 2, 1))  # fmt: skip
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    scores = {name: torch.ones(8) for name in graph.costs.groups}
    priced = per_cost(scores, graph)
    costs = graph.costs
    saved = costs.macs() - costs.macs({"0": 7})
    assert torch.allclose(priced["0"], torch.tensor(1 / saved).expand(8))
    assert priced["0"][0] < priced["2"][0]
    plain = select(scores, budget={"macs": "70%"}, graph=graph)
    dear = select(priced, budget={"macs": "70%"}, graph=graph)
    assert sum(map(len, dear.values())) >= sum(map(len, plain.values()))


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({}, "expected some of"),
        ({"flops": 3}, r"got \['flops'\]"),
        ({"macs": 0.5}, "a share like '60%' for macs, got 0.5"),
        ({"macs": "half"}, "got 'half'"),
        ({"macs": "-3%"}, "got '-3%'"),
        ({"latency": 0}, "got 0"),
    ],
)
def test_budgets_that_make_no_sense(budget, text):
    graph = trace(make(PlainCNN), inputs(PlainCNN))
    with pytest.raises(ValueError, match=text):
        select(scores_of(graph), budget=budget, graph=graph)


def test_either_a_ratio_or_a_budget_and_the_graph_with_it():
    with pytest.raises(ValueError, match="expected one of the two, got neither"):
        select({"a": torch.ones(3)})
    with pytest.raises(ValueError, match="expected one of the two, got both"):
        select({"a": torch.ones(3)}, 0.5, budget={"macs": 3})
    with pytest.raises(ValueError, match="argument graph: expected that of the model"):
        select({"a": torch.ones(3)}, budget={"macs": 3})
    graph = trace(make(PlainCNN), inputs(PlainCNN))
    with pytest.raises(ValueError, match=r"prunable groups of the graph, got \['a'\]"):
        select({"a": torch.ones(3)}, budget={"macs": 3}, graph=graph)


# ---- latency: what is measured, and how often; never how long


@pytest.mark.parametrize("kind", [*MODELS, Attention])
def test_every_operator_can_be_run_at_smaller_widths(kind, monkeypatch):
    def once(call, device, block):
        call()
        return 1.0

    monkeypatch.setattr(latency, "_seconds", once)
    graph = trace(make(kind), inputs(kind))
    table = latency.LatencyTable(graph)
    whole = table({})
    assert table(dict.fromkeys(graph.costs.groups, 1)) == whole > 0
    assert table.unmeasured == {}


def test_each_operator_is_measured_once_at_each_shape(monkeypatch):
    calls = []
    monkeypatch.setattr(latency, "_seconds", lambda call, device, block: calls.append(call) or 1.0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)), nn.Flatten(), nn.Linear(16, 2))
    graph = trace(model, torch.zeros(1, 4, 2, 2))
    assert graph.costs.latency() == 4.0
    assert len(calls) == 2
    assert graph.costs.latency({"1": 3}) == 4.0
    assert len(calls) == 4
    graph.costs.latency({"1": torch.arange(3)})
    assert len(calls) == 4


def test_a_latency_budget_is_met_by_the_table(monkeypatch):
    def elements(call, device, block):
        return float(call().numel())

    monkeypatch.setattr(latency, "_seconds", elements)
    graph = trace(make(PlainCNN), inputs(PlainCNN))
    keep = select(scores_of(graph), budget={"latency": "60%"}, graph=graph)
    assert graph.costs.latency(keep) <= 0.6 * graph.costs.latency()


def test_a_latency_that_does_not_fall_with_every_channel(monkeypatch):
    def odd_is_slow(call, device, block):
        return 100.0 if call().shape[-1] % 2 else float(call().numel())

    monkeypatch.setattr(latency, "_seconds", odd_is_slow)
    graph = trace(nn.Sequential(nn.Linear(4, 32), nn.Linear(32, 2)), torch.zeros(1, 4))
    keep = select({"0": torch.arange(32.0)}, budget={"latency": 12}, graph=graph,
                  max_pruning_ratio=0.8)  # fmt: skip
    assert len(keep["0"]) in (8, 10)
    with pytest.raises(ValueError, match="at most 5 latency, got 102 at the least"):
        select({"0": torch.arange(32.0)}, budget={"latency": 5}, graph=graph, max_pruning_ratio=0.8)


def test_latency_is_measured_for_real():
    graph = trace(nn.Linear(3, 2), torch.zeros(1, 3))
    assert 0 < graph.costs.latency() < 1
    meta = trace(nn.Linear(3, 2, device="meta"), torch.zeros(1, 3, device="meta"))
    assert meta.costs.macs() == 6
    with pytest.raises(ValueError, match="meta device"):
        meta.costs.latency()
