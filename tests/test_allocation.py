"""How much each group loses: per cost saved, and by measured sensitivity."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import infoslice
from infoslice.allocation import relative_error, sensitivity
from infoslice.perturbation import Inputs
from infoslice.selection import select


class _Branches(nn.Module):
    """A sum of branches, so that what one saves does not depend on the width of another."""

    def __init__(self, widths=(3, 4, 2), sizes=(2, 7, 20)):
        super().__init__()
        self.sizes = list(sizes)
        self.up = nn.ModuleList(nn.Linear(d, w) for d, w in zip(sizes, widths, strict=True))
        self.down = nn.ModuleList(nn.Linear(w, 5) for w in widths)

    def forward(self, x):
        parts = x.split(self.sizes, 1)
        return sum(
            down(up(p).tanh()) for up, down, p in zip(self.up, self.down, parts, strict=True)
        )


def _lost(scores, keep):
    return sum(float(s.sum() - s[keep[name]].sum()) for name, s in scores.items())


@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_lowest_loss_per_cost_first_is_the_best_way_to_meet_a_budget(cost):
    graph = infoslice.trace(_Branches(), torch.zeros(1, 29))
    of = getattr(graph.costs, cost)
    options = {"graph": graph, "allocation": f"per_{cost}", "max_pruning_ratio": 0.99}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scores = {
            g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64)
            for g in graph.prunable
        }
        ways = []
        for widths in itertools.product(*(range(1, len(s) + 1) for s in scores.values())):
            keep = {n: s.topk(w).indices for (n, s), w in zip(scores.items(), widths, strict=True)}
            ways.append((of(keep), _lost(scores, keep)))
        for ratio in (0.2, 0.4, 0.6):
            keep = select(scores, ratio, **options)
            assert sum(map(len, keep.values())) == 9 - int(9 * ratio)
            least = min(lost for spent, lost in ways if spent <= of(keep))
            assert _lost(scores, keep) == pytest.approx(least)
            again = select(scores, budget={cost: of(keep)}, **options)
            assert all(torch.equal(again[name], keep[name]) for name in keep)
    with pytest.raises(ValueError, match="argument graph: expected that of the model"):
        select(scores, 0.5, allocation=f"per_{cost}")
    with pytest.raises(ValueError, match=r"prunable groups of the graph, got \['x'\]"):
        select({"x": torch.ones(3)}, 0.5, **options)


def _chain(widths=(8, 12), kind=nn.Linear):
    torch.manual_seed(0)
    a, b = widths
    if kind is nn.Conv2d:
        return nn.Sequential(
            nn.Conv2d(2, a, 3), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(b * 16, 4),
        ).double()  # fmt: skip
    return nn.Sequential(
        nn.Linear(6, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 4)
    ).double()


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_the_outputs_compared_are_those_of_the_network_with_one_group_cut(kind):
    model = _chain(kind=kind)
    x = torch.randn(10, *((6,) if kind is nn.Linear else (2, 8, 8)), dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = {g.name: torch.rand(g.channels) for g in graph.prunable}
    seen = []

    def divergence(output, original):
        seen.append(output)
        return relative_error(output, original)

    ratios = (0.25, 0.5)
    sensitivity(graph, model, Inputs.of(x), scores, ratios=ratios, divergence=divergence)
    model.eval()
    cuts = [
        {name: values.topk(len(values) - int(r * len(values))).indices.sort().values}
        for name, values in scores.items()
        for r in ratios
    ]
    assert len(seen) == len(cuts)
    for output, keep in zip(seen, cuts, strict=True):
        cut = infoslice.plan(graph, keep=keep).apply(model).model
        torch.testing.assert_close(output, cut(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model(x).requires_grad


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
@pytest.mark.parametrize("room", [2**40, 1])
def test_what_a_refit_mends_does_not_count(kind, room, monkeypatch):
    """``room``: bytes for covariances; with one every group is measured by itself."""
    monkeypatch.setattr("infoslice.measured_network._BYTES", room)
    model = _chain(kind=kind).eval()
    x = torch.randn(40, *((6,) if kind is nn.Linear else (2, 8, 8)), dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    options = {"data": x, "criterion": "l2_norm", "graph": graph, "show_progress": False}
    measured = []

    def divergence(output, original):
        measured.append(output)
        return relative_error(output, original)

    ratios = (0.25, 0.5)
    watched = functools.partial(sensitivity, ratios=ratios, divergence=divergence)
    infoslice.prune(model, x[:1], allocation=watched, **options)
    cuts = [{g.name: ratio} for g in graph.prunable for ratio in ratios]
    assert len(measured) == len(cuts)
    for output, own in zip(measured, cuts, strict=True):
        alone = infoslice.prune(
            model, x[:1], pruning_ratio=0.0, pruning_ratio_dict=own,
            compensation="least_squares", **options,
        )  # fmt: skip
        torch.testing.assert_close(output, alone.model(x).detach(), rtol=1e-9, atol=1e-11)


def test_marginal_costs_follow_convex_measurements_and_batches_do_not_matter():
    model = _chain((8, 16))
    x = torch.randn(6, 6, dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    scores = {g.name: torch.rand(g.channels) for g in graph.prunable}
    for batch_size in (64, 2):
        of_one, of_other = [4.0, 16.0, 36.0], [3 * 16.0, 3 * 64.0, 3 * 144.0]  # k^2 and 3 k^2
        times = -(-6 // batch_size)
        calls = iter([*of_one * times, *of_other * times])

        def squares(output, original, calls=calls):
            return next(calls)

        found = sensitivity(
            graph, model, Inputs.of(x), scores, ratios=(0.25, 0.5, 0.75), divergence=squares,
            batch_size=batch_size,
        )  # fmt: skip
        for factor, (name, values) in zip((1, 3), found.items(), strict=True):
            count = torch.arange(1, len(values) + 1, dtype=torch.float64)
            ranked = values[scores[name].argsort()]
            torch.testing.assert_close(ranked.cumsum(0), factor * count**2)


def test_a_curve_that_falls_or_bulges_still_gives_the_order_of_the_scores():
    model = _chain((16, 16))
    x = torch.randn(4, 6, dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    scores = {g.name: torch.rand(16) for g in graph.prunable}
    calls = itertools.count()
    measured = [5.0, 6.0, 6.5, 6.6, 0.0, 0.0, 0.0, 0.0]
    found = sensitivity(
        graph, model, Inputs.of(x), scores, divergence=lambda *_: measured[next(calls)]
    )
    for name, values in found.items():
        assert torch.equal(values.argsort(), scores[name].argsort())
    live, dead = found.values()
    assert dead.max() < live.min()


def test_a_redundant_layer_makes_room_for_the_others():
    model = _chain((12, 12))
    model[1], model[3] = nn.Tanh(), nn.Tanh()
    with torch.no_grad():
        model[2].weight[:, 4:] = 0.0  # of twelve channels the next layer reads four
    x = torch.randn(64, 6, dtype=torch.float64)

    def by_reading(statistics, weights):
        return torch.cat(statistics.outgoing, 1).square().sum((1, 2))

    left, errors = {}, {}
    for allocation in ("uniform", "sensitivity"):
        result = infoslice.prune(
            model, x[:1], data=x, criterion=by_reading, allocation=allocation,
            compensation="none", pruning_ratio=0.25, show_progress=False,
        )  # fmt: skip
        left[allocation] = [result.model[0].out_features, result.model[2].out_features]
        errors[allocation] = relative_error(result.model(x), model(x))
    assert left["uniform"] == [9, 9]
    assert sum(left["sensitivity"]) == 18
    assert left["sensitivity"][0] <= 7
    assert errors["sensitivity"] < 0.2 * errors["uniform"]


@pytest.mark.parametrize("budget", [{"macs": "55%"}, {"parameters": "50%", "macs": "70%"}, None])
def test_prune_meets_a_budget_by_sensitivity_whatever_the_unit_of_the_scores(budget):
    model = _chain(kind=nn.Conv2d)
    x = torch.randn(32, 2, 8, 8, dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    kept = []
    for scale in (1.0, 1e6):

        def scaled(statistics, weights, scale=scale):
            first = statistics.name == graph.prunable[0].name
            return (scale if first else 1.0) * infoslice.criteria.l2_norm(statistics, weights)

        result = infoslice.prune(
            model, x[:1], data=x, criterion=scaled, allocation="sensitivity", budget=budget,
            pruning_ratio=0.5 if budget is None else None, graph=graph, show_progress=False,
        )  # fmt: skip
        kept.append(result.plan.keep)
        for cost, share in (budget or {}).items():
            of = getattr(graph.costs, cost)
            assert of(result.plan.keep) <= float(share[:-1]) / 100 * of()
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_divergence_of_ones_own_and_what_is_refused():
    model, x = _chain(), torch.randn(4, 6, dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    scores = {g.name: torch.rand(g.channels) for g in graph.prunable}

    def kl(output, original):
        log_q, log_p = output.log_softmax(1), original.log_softmax(1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    found = sensitivity(graph, model, Inputs.of(x), scores, divergence=kl)
    assert all((values > 0).all() for values in found.values())
    for ratios in ((), (0.5, 0.25), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="argument ratios"):
            sensitivity(graph, model, Inputs.of(x), scores, ratios=ratios)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="argument divergence: expected finite"):
            sensitivity(graph, model, Inputs.of(x), scores, divergence=lambda *_, w=wrong: w)
    with pytest.raises(TypeError, match="a floating-point tensor"):
        relative_error((1, "x"), (1, "x"))
