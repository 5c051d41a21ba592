"""Mixtures of experts: their widths are cut, and whole experts as if they were never chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan
from oracle import assert_same, silence

EXPERTS, CHOSEN, INNER = 6, 2, 12


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, 8))

    def forward(self, x):
        scores = torch.softmax(F.linear(x, self.weight), -1)
        share, chosen = torch.topk(scores, CHOSEN, dim=-1)
        return share / share.sum(-1, keepdim=True), chosen


class Experts(nn.Module):
    """Stacked weights; those of the experts chosen are looked up."""

    def __init__(self):
        super().__init__()
        self.num_experts = EXPERTS
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, 8))
        self.down = nn.Parameter(torch.randn(EXPERTS, 8, INNER))

    def forward(self, x, share, chosen):
        x = x.repeat_interleave(CHOSEN, dim=0)
        chosen = chosen.reshape(-1)
        gate, up = torch.bmm(self.gate_up[chosen], x.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        y = torch.bmm(self.down[chosen], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (y * share.reshape(-1, 1)).view(-1, CHOSEN, y.shape[-1]).sum(1)


class Sorted(Experts):
    """The same with rows in the order of their experts, and one grouped product for all."""

    def forward(self, x, share, chosen):
        ordered, order = torch.sort(chosen.reshape(-1))
        x = x[order // CHOSEN]
        counts = torch.histc(
            ordered.float(), bins=self.num_experts, min=0, max=self.num_experts - 1
        )
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        product = F.grouped_mm
        gate, up = product(x, self.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        y = product(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        y = y * share.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return y[back].view(-1, CHOSEN, y.shape[-1]).sum(1)


class Mixture(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.first, self.router, self.experts = nn.Linear(5, 8), Router(), experts()
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.experts(x, *self.router(x)))


KEEP = {"first": [0, 2, 3, 5], "router": [0, 3, 4], "experts": [1, 2, 3, 4, 5, 6, 9, 11]}


@pytest.mark.parametrize(("experts", "dtype"), [(Experts, torch.double), (Sorted, torch.float32)])
@pytest.mark.parametrize("name", KEEP)
def test_width_inner_width_and_number_of_experts(experts, dtype, name):
    torch.manual_seed(0)
    model, x = Mixture(experts).to(dtype), torch.randn(20, 5, dtype=dtype)
    graph = trace(model, x)
    assert {group.name: group.channels for group in graph.prunable} == {
        "first": 8, "router": EXPERTS, "experts": INNER,
    }  # fmt: skip
    pruning = plan(graph, keep={name: KEEP[name]})
    small = pruning.apply(model).model
    assert small.experts.num_experts == small.router.weight.shape[0]
    with torch.no_grad():
        silenced = silence(model, pruning)(x)
        assert (silenced - model(x)).abs().max() > 1e-2
        assert_same(small(x), silenced, 1e-12 if dtype == torch.double else 1e-5)


def test_too_few_experts_and_rows_that_no_kernel_takes_are_refused():
    model, x = Mixture(Sorted), torch.randn(20, 5)
    graph = trace(model, x)
    with pytest.raises(ValueError, match="router: topk chooses 2 of 1 entries"):
        plan(graph, keep={"router": [0]}).apply(model)
    with pytest.raises(ValueError, match=r"experts: grouped_mm wants .* a multiple of 4 channels"):
        plan(graph, remove={"experts": [0]}).apply(model)


OTHER_USES = {
    "compared": lambda s, x: (x.softmax(-1).topk(2, -1).indices == 1).to(x.dtype),
    "returned": lambda s, x: x.softmax(-1).topk(2, -1).indices,
    "values alone": lambda s, x: x.topk(2, -1).values,
    "scores read too": lambda s, x: (h := x.softmax(-1)).var() + s.table[h.topk(2, -1)[1]],
    "another axis": lambda s, x: s.table[x.softmax(-1).topk(2, 0).indices],
    "shifted": lambda s, x: s.table[x.topk(2, -1).indices - 1],
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_USES)
def test_positions_that_mean_more_need_all_experts(name):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.table = nn.Linear(5, 6), nn.Parameter(torch.randn(6))

        def forward(self, x):
            return OTHER_USES[name](self, self.router(x))

    graph = trace(Reads(), torch.randn(7, 5))
    assert graph.prunable == ()
    assert "router" in graph.whole
