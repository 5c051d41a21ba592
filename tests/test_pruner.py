"""The whole pipeline on small networks and on the trained one of the demo."""

import copy
import json

import pytest
import torch
from torch import nn

import infoslice
import networks
from infoslice.demo import load_images, load_network
from infoslice.demo.network import accuracy
from infoslice.perturbation import match, noise

QUICK = {"samples": 32, "match_steps": 5, "show_progress": False}
NETWORKS = [
    networks.PlainCNN,
    networks.Residual,
    networks.Inverted,
    networks.SqueezeExcite,
]


def _state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def _same(model, state):
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class MLP(nn.Sequential):
    shape = (2, 1, 4, 5)

    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(),
            nn.Linear(12, 3),
        )  # fmt: skip


@pytest.mark.parametrize("make", [*NETWORKS, MLP], ids=lambda m: m.__name__)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_every_supported_network_gets_smaller_and_the_original_stays(make, allocation):
    model, example = make().train(), torch.randn(make.shape)
    with torch.no_grad():
        model(torch.randn(64, *make.shape[1:]))
    state = _state(model)
    result = infoslice.prune(model, example, allocation=allocation, **QUICK)
    assert _same(model, state)
    assert all(module.training for module in model.modules())
    assert all(module.training for module in result.model.modules())
    report = result.report
    count = sum(p.numel() for p in result.model.parameters())
    assert report.after.parameters == count < report.before.parameters
    assert 0 < report.after.macs < report.before.macs
    assert report.after.latency > 0
    graph = infoslice.trace(model, example)
    total = sum(g.channels for g in graph.prunable)
    left = sum(len(result.plan.keep.get(g.name, range(g.channels))) for g in graph.prunable)
    if allocation == "global":
        assert left == total - total // 2
    else:
        for group in graph.prunable:
            kept = len(result.plan.keep.get(group.name, range(group.channels)))
            assert kept == group.channels - group.channels // 2
    for layer in report.layers:
        if layer.nats is not None:
            assert layer.nats >= layer.nats_kept >= 0
    assert any(layer.nats for layer in report.layers)
    json.dumps(report.to_dict())
    assert report.layers[0].name in str(report)
    # trains on
    result.model(torch.randn(4, *make.shape[1:])).sum().backward()


def test_in_place_gives_the_same_model():
    model, example = networks.Residual(), torch.randn(networks.Residual.shape)
    result = infoslice.prune(model, example, **QUICK)
    again = infoslice.prune(model, example, inplace=True, **QUICK)
    assert again.model is model
    assert _same(model, _state(result.model))
    model.eval(), result.model.eval()
    assert torch.equal(model(example), result.model(example))


def test_in_place_the_optimizer_goes_along():
    model, x = networks.PlainCNN(), torch.randn(networks.PlainCNN.shape)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="optimizer"):
        infoslice.prune(model, x, optimizer=optimizer, **QUICK)
    result = infoslice.prune(model, x, inplace=True, optimizer=optimizer, **QUICK)
    assert result.model is model
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in held)


def test_the_refitted_model_is_the_silenced_one_without_its_zeros():
    """With data from a subspace, half of the channels carry everything: nothing is lost."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 4)).double()
    x = torch.randn(200, 3, dtype=torch.float64)
    result = infoslice.prune(
        model, x[:1], data=x, pruning_ratio=0.75, allocation="uniform",
        compensation_ridge=1e-12, criterion_options={"ridge": 1e-9}, show_progress=False,
    )  # fmt: skip
    assert result.model[0].weight.shape == (4, 3)
    assert result.report.perturbation == "data"
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-6)
    plain = infoslice.prune(
        model, x[:1], data=x, pruning_ratio=0.75, compensation="none", show_progress=False
    )
    assert (plain.model(x) - model(x)).abs().max() > 0.01


def test_without_compensation_the_kept_weights_are_the_old_ones():
    model, example = networks.PlainCNN().eval(), torch.randn(networks.PlainCNN.shape)
    result = infoslice.prune(
        model, example, criterion="l1_norm", compensation="none", allocation="uniform"
    )
    cut = infoslice.plan(infoslice.trace(model, example), keep=result.plan.keep)
    expected = cut.apply(model).model
    assert _same(result.model, _state(expected))
    assert result.report.perturbation == "none"
    first = result.plan.keep["body.0.0"]
    scores = model.body[0][0].weight.abs().sum((1, 2, 3))
    assert first.tolist() == scores.topk(4).indices.sort().values.tolist()


def test_nothing_asked_nothing_cut():
    model, example = networks.Residual().eval(), torch.randn(networks.Residual.shape)
    result = infoslice.prune(model, example, pruning_ratio=0.0, **QUICK)
    assert _same(result.model, _state(model))
    assert result.edits == ()


def test_open_choices_change_what_is_kept():
    model, example = load_network(), torch.zeros(1, 1, 28, 28)
    graph = infoslice.trace(model, example)
    found = set()
    for options in (
        {},
        {"injection": "layer"},
        {"target": "post"},
        {"perturbation": "uniform"},
        {"seed": 5},
        {"criterion_options": {"score": "output"}},
        {"criterion_options": {"score": "marginal"}},
    ):
        result = infoslice.prune(
            model, example, graph=graph, samples=24, compensation="none",
            **{"perturbation": "gaussian", **options}, show_progress=False,
        )  # fmt: skip
        found.add(str({name: keep.tolist() for name, keep in result.plan.keep.items()}))
    assert len(found) == 7


def test_the_report_tells_what_was_measured_in_any_precision():
    model, example = MLP(), torch.randn(MLP.shape)
    data = torch.randn(100, *MLP.shape[1:])
    found = []
    for dtype in (torch.float32, torch.float64):
        result = infoslice.prune(
            copy.deepcopy(model).to(dtype), example.to(dtype), data=data.to(dtype),
            show_progress=False,
        )  # fmt: skip
        known = [(r.nats, r.nats_kept) for r in result.report.layers if r.nats is not None]
        found.append(torch.tensor(known))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert (found[1][:, 0] > found[1][:, 1]).any()


def test_equal_calls_give_equal_models():
    model, example = networks.Residual(), torch.randn(networks.Residual.shape)
    one, two = (infoslice.prune(model, example, **QUICK).model for _ in range(2))
    assert _same(one, _state(two))


def test_a_function_of_the_users_own_is_a_criterion():
    model, example = MLP(), torch.randn(MLP.shape)
    asked = []

    def variance(statistics, weights):
        asked.append(statistics.name)
        (layer,) = statistics.consumers
        return layer.moments.covariance_x.diagonal()[layer.variables].sum(1)

    result = infoslice.prune(model, example, criterion=variance, **QUICK)
    assert asked == ["1", "3"]
    assert result.report.after.parameters < result.report.before.parameters


def test_trained_network_without_data():
    """The claim of the demo, at a quick fit: 25 % of the channels cost 2 points, 50 % cost 10."""
    model, (pixels, labels) = load_network(), load_images()
    example = torch.zeros(1, 1, 28, 28)
    fitted = match(model, noise(example, 96), steps=80, show_progress=False)
    dense = accuracy(model, pixels, labels)
    graph = infoslice.trace(model, example)
    for ratio, points in ((0.25, 0.02), (0.5, 0.10)):
        result = infoslice.prune(
            model, example, pruning_ratio=ratio, data=fitted, graph=graph, show_progress=False
        )
        plain = infoslice.prune(
            model, example, pruning_ratio=ratio, graph=graph, perturbation="gaussian", samples=96,
            allocation="uniform", compensation="none", criterion_options={"greedy": False},
            show_progress=False,
        )  # fmt: skip
        assert accuracy(result.model, pixels, labels) >= dense - points
        assert accuracy(plain.model, pixels, labels) < dense - 2 * points


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_budgets_are_met_and_groups_may_have_ratios_of_their_own(allocation):
    model, x = networks.Residual(), torch.randn(2, 3, 8, 8)
    result = infoslice.prune(
        model, x, budget={"macs": "60%", "parameters": "70%"}, allocation=allocation, **QUICK
    )
    before, after = result.report.before, result.report.after
    assert after.macs <= 0.6 * before.macs
    assert after.parameters <= 0.7 * before.parameters
    assert after.parameters == sum(p.numel() for p in result.model.parameters())
    first = result.plan.graph.prunable[0].name
    result = infoslice.prune(
        model, x, pruning_ratio=0.5, pruning_ratio_dict={first: 0.0}, allocation=allocation,
        **QUICK,
    )  # fmt: skip
    assert first not in result.plan.keep
    assert result.plan.keep


def test_budget_and_ratio_exclude_each_other():
    with pytest.raises(ValueError, match="pruning_ratio and budget"):
        infoslice.prune(
            networks.Residual(), torch.randn(2, 3, 8, 8), pruning_ratio=0.5, budget={"macs": "50%"}
        )
    with pytest.raises(ValueError, match="budget"):
        infoslice.prune(networks.Residual(), torch.randn(2, 3, 8, 8), budget={"macs": 1})


class Functional(nn.Module):
    """Uses the weight of a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return torch.nn.functional.linear(self.a(x).relu(), self.b.weight, self.b.bias)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return torch.nn.functional.conv2d(x, weight, self.bias)


def test_a_layer_that_computes_its_weight_is_neither_measured_nor_refitted():
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), Standardised(8, 6, 1), nn.ReLU(),
                          nn.Conv2d(6, 2, 1))  # fmt: skip
    x = torch.randn(2, 2, 3, 3)
    result = infoslice.prune(model, x, **QUICK)
    assert "is a Standardised" in result.report.left_whole["0"]
    assert set(result.plan.keep) == {"2"}
    result = infoslice.prune(model, x, criterion="l2_norm", **QUICK)
    assert set(result.plan.keep) == {"0", "2"}
    assert "forward of its own" in result.report.not_refitted["2"]


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_only_criteria_that_read_statistics_need_measurable_layers(allocation):
    grouped = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2))
    x = torch.randn(1, 2, 3, 3)
    for model, given, reason in (
        (grouped, x, "'2' is a Conv2d; torch's own linear layers and convolutions with groups=1"),
        (Functional(), torch.randn(2, 3), "the weight of 'b' is used by other code"),
    ):
        (group,) = infoslice.trace(model, given).prunable
        result = infoslice.prune(model, given, allocation=allocation, **QUICK)
        assert result.edits == ()
        assert reason in result.report.left_whole[group.name]
        result = infoslice.prune(
            model, given, criterion="l2_norm", compensation="none", allocation=allocation,
            show_progress=False,
        )  # fmt: skip
        assert result.plan.keep[group.name].numel() == group.channels // 2
        assert result.model(given).shape == model(given).shape


def test_what_is_not_refitted_or_left_whole_is_named():
    result = infoslice.prune(Normalised(), torch.randn(2, 5), **QUICK)
    assert result.model.a.weight.shape[0] == 6
    assert "normalises" in result.report.not_refitted["b"]
    model = nn.Sequential(nn.Linear(2, 8), nn.Softmax(-1), nn.Linear(8, 8))
    result = infoslice.prune(model, torch.randn(1, 2), **QUICK)
    assert result.edits == ()
    assert set(result.report.left_whole) >= {"0"}
    assert "left whole: 0" in str(result.report)
    wide = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
    result = infoslice.prune(wide, torch.randn(1, 4), max_variables=20, **QUICK)
    assert result.edits == ()
    assert "max_variables = 20" in result.report.left_whole["0"]


def test_a_tied_layer_is_cut_but_not_refitted():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight, self.out = self.b.weight, nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.c(self.b(self.a(x).relu()).relu()))

    result = infoslice.prune(Tied(), torch.randn(1, 3), **QUICK)
    assert result.model.c.weight is result.model.b.weight
    assert set(result.report.not_refitted) <= {"b", "c"}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"pruning_ratio": 1.0}, ValueError, r"pruning_ratio: expected a number in \[0, 1\), got"),
        ({"pruning_ratio": -0.1}, ValueError, "pruning_ratio"),
        ({"max_pruning_ratio": 2.0}, ValueError, "max_pruning_ratio"),
        ({"criterion": "l3"}, ValueError, "criterion: expected one of .*'causal'.*got 'l3'"),
        ({"criterion": 3}, TypeError, "criterion"),
        (
            {"criterion": lambda s, w: torch.zeros(2)},
            ValueError,
            r"expected 8 scores .* got \(2,\)",
        ),
        ({"criterion": lambda s, w: [1.0] * 8}, ValueError, "got list"),
        (
            {"criterion": lambda s, w: torch.full((s.channels,), torch.nan)},
            ValueError,
            "finite scores",
        ),
        ({"criterion_options": {"score": "x"}}, ValueError, "score"),
        ({"allocation": "local"}, ValueError, "allocation: expected one of"),
        ({"refinement": "some"}, ValueError, "refinement: expected one of"),
        ({"refinement": lambda s, keep: keep[1:]}, ValueError, "refinement: expected .* keeps 4"),
        ({"refinement": lambda s, keep: keep.flip(0)}, ValueError, "sorted, unique channels"),
        ({"compensation": "some"}, ValueError, "compensation"),
        ({"compensation_ridge": 0.0}, ValueError, "compensation_ridge"),
        ({"perturbation": "white"}, ValueError, "perturbation"),
        ({"injection": "output"}, ValueError, "injection"),
        ({"target": "mid"}, ValueError, "target"),
        ({"round_to": 0}, ValueError, "round_to"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"samples": 1}, ValueError, "samples"),
        ({"match_steps": 0}, ValueError, "steps"),
        ({"data": torch.full((9, 3, 9, 9), torch.inf)}, ValueError, "expected finite"),
        ({"data": 3.0}, TypeError, "inputs"),
        ({"ignored_layers": ["nowhere"]}, ValueError, "nowhere"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_bad_arguments_change_nothing(options, error, text, inplace):
    model, example = networks.PlainCNN(), torch.randn(networks.PlainCNN.shape)
    state = _state(model)
    with pytest.raises(error, match=text):
        infoslice.prune(model, example, inplace=inplace, **{**QUICK, **options})
    assert _same(model, state)
    assert all(module.training for module in model.modules())


def test_a_model_that_cannot_be_traced_or_is_not_finite():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else self.b(self.a(-x))

    with pytest.raises(infoslice.TraceError, match="branch independent of tensor values"):
        infoslice.prune(Branch(), torch.randn(1, 3), **QUICK)
    model = MLP()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"finite|NaN"):
        infoslice.prune(model, torch.randn(MLP.shape), **QUICK)
    assert all(torch.equal(v, state[k]) or v.isnan().any() for k, v in model.state_dict().items())


def test_models_of_tokens_need_no_data():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, ids):
            return self.b(self.a(self.e(ids)).relu())

    model, ids = Tokens(), torch.randint(0, 9, (40, 5))
    with pytest.raises(TypeError, match="real inputs as data"):
        infoslice.prune(model, ids[:1], **{**QUICK, "perturbation": "gaussian"})
    result = infoslice.prune(model, ids[:1], **{**QUICK, "perturbation": "auto"})
    assert result.report.perturbation == "tokens"
    result = infoslice.prune(model, ids[:1], data=ids, **QUICK)
    assert result.report.perturbation == "data"
    assert result.report.after.parameters < result.report.before.parameters


def test_covariances_beyond_the_memory_are_measured_in_portions(monkeypatch):
    model, example = load_network(), torch.zeros(1, 1, 28, 28)
    options = {"samples": 24, "perturbation": "gaussian", "show_progress": False}
    whole = infoslice.prune(model, example, **options)
    monkeypatch.setattr("infoslice.measured_network._BYTES", 8 * 300**2)
    collected = []
    inner = infoslice.measured_network.collect
    monkeypatch.setattr(
        "infoslice.measured_network.collect",
        lambda model, inputs, layers, **options: (
            collected.append(layers) or inner(model, inputs, layers, **options)
        ),
    )
    parts = infoslice.prune(model, example, **options)
    assert len(collected) > 3
    assert _same(parts.model, _state(whole.model))


def test_a_graph_of_another_use_of_the_model_is_refused():
    model, x = networks.PlainCNN().eval(), torch.randn(networks.PlainCNN.shape)
    graph = infoslice.trace(model, x, forward_fn=lambda model, x: model(x.flip(0)))
    with pytest.raises(ValueError, match="traced without forward_fn"):
        infoslice.prune(model, x, graph=graph, **QUICK)
