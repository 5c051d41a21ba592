"""Scores against closed forms, brute force and what they must be on channels that are known."""

from functools import partial

import pytest
import torch
from torch import nn

import infoslice
from infoslice.criteria import causal, l1_norm, l2_norm, random
from infoslice.group_statistics import GroupStatistics
from infoslice.group_weights import filters
from infoslice.perturbation import Inputs
from infoslice.statistics import collect


def _statistics(model, x, index=0, outputs=None):
    """Statistics of the index-th prunable group under the inputs ``x``."""
    graph = infoslice.trace(model, x[:1])
    group = graph.prunable[index]
    names = [*group.producers, *group.consumers]
    found = collect(model, Inputs.of(x), names, outputs=outputs)
    return group, GroupStatistics(group, model, lambda: found)


def _mlp(width=6, outputs=5):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def _joint(model, x, noise_variance, ridge):
    """Covariance of [hidden; standardised output + noise] by hand."""
    hidden = model[:2](x).detach()
    sx = torch.cov(hidden.T, correction=0)
    w = model[2].weight.detach()
    w = w / (w @ sx @ w.T).diagonal().sqrt()[:, None]
    sx = sx + ridge * torch.diag(sx.diagonal())
    joint = torch.cat([torch.cat([sx, sx @ w.T], 1), torch.cat([w @ sx, w @ sx @ w.T], 1)])
    joint.diagonal()[len(sx) :] += noise_variance * len(w)
    return joint


def _mi(joint, a, b):
    """I(a; b) by determinants."""
    part = lambda i: torch.linalg.slogdet(joint[i][:, i]).logabsdet.item()  # noqa: E731
    return 0.5 * (part(a) + part(b) - part([*a, *b]))


@pytest.mark.parametrize("noise_variance", [1.0, 0.01])
def test_every_reading_equals_its_definition(noise_variance):
    model, x = _mlp(), torch.randn(400, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    ridge = 1e-3
    joint = _joint(model, x, noise_variance, ridge)
    hidden, y = list(range(6)), list(range(6, 11))
    expected = {
        "marginal": [_mi(joint, [c], y) for c in hidden],
        "pairwise": [sum(_mi(joint, [c], [j]) for j in y) for c in hidden],
        "conditional": [
            _mi(joint, hidden, y) - _mi(joint, [h for h in hidden if h != c], y) for c in hidden
        ],
    }
    for score, values in expected.items():
        got = causal(
            statistics, score=score, greedy=False, noise_variance=noise_variance, ridge=ridge
        )
        torch.testing.assert_close(got, torch.tensor(values), rtol=1e-7, atol=1e-10, check_dtype=0)


def test_conditional_has_the_closed_form_of_structured_obs():
    model, x = _mlp(), torch.randn(300, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    got = causal(statistics, greedy=False, noise_variance=0.3, ridge=0.0)
    joint = _joint(model, x, 0.3, 0.0)
    precision = torch.linalg.inv(joint[:6, :6])
    w = model[2].weight.detach()
    w = w / (w @ joint[:6, :6] @ w.T).diagonal().sqrt()[:, None]
    expected = 0.5 * torch.log1p(w.square().sum(0) / (0.3 * 5 * precision.diagonal()))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)


def test_output_reading_scores_the_written_channels():
    model, x = _mlp(), torch.randn(300, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    got = causal(statistics, score="output", noise_variance=0.1, ridge=0.0)
    # I(X; Y_c + N): the outputs are exact linear maps, so only the noise is left unexplained.
    variances = model[0](x).var(0, correction=0)
    expected = 0.5 * torch.log1p(variances / (0.1 * variances.sum()))
    torch.testing.assert_close(got, expected.detach(), rtol=1e-8, atol=0)
    assert got.max() > 1.1 * got.min()  # it ranks, and not by rounding


def test_greedy_is_backward_elimination_by_brute_force():
    model, x = _mlp(5, 4), torch.randn(200, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    scores = causal(statistics, noise_variance=0.2, ridge=1e-3)
    joint, y = _joint(model, x, 0.2, 1e-3), list(range(5, 9))
    left, last = list(range(5)), 0.0
    while left:
        now = _mi(joint, left, y) if left else 0.0
        loss = {
            c: now - (_mi(joint, [h for h in left if h != c], y) if len(left) > 1 else 0.0)
            for c in left
        }
        least = min(left, key=loss.__getitem__)
        assert scores[least].item() == pytest.approx(max(loss[least], last), rel=1e-6)
        last = max(loss[least], last)
        left.remove(least)
    assert len(set(scores.tolist())) == 5


def test_greedy_tells_twins_apart_and_one_shot_scores_do_not():
    width = 12
    model = _mlp(width, 10)
    with torch.no_grad():  # channel c + 6 nearly repeats channel c
        noise = 1e-3 * torch.randn(6, 4, dtype=torch.float64)
        model[0].weight[6:] = model[0].weight[:6] + noise
        model[0].bias[6:] = model[0].bias[:6]
    x = torch.randn(2000, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    kept = causal(statistics, ridge=1e-9).topk(6).indices
    assert sorted((kept % 6).tolist()) == list(range(6))
    marginal = causal(statistics, score="marginal", ridge=1e-9)
    torch.testing.assert_close(marginal[:6], marginal[6:], rtol=0.02, atol=0)


class _Two(nn.Module):
    """Group a is read by two layers; one of them reads group b beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3)
        self.first, self.both = nn.Conv2d(3, 5, 3), nn.Conv2d(7, 5, 3)

    def forward(self, x):
        a, b = self.a(x).tanh(), self.b(x).tanh()
        return self.first(a) + self.both(torch.cat([b, a], 1))


def test_receptive_fields_are_groups_and_layers_add_up_given_the_rest():
    model, x = _Two().double(), torch.randn(8, 2, 9, 9, dtype=torch.float64)
    graph = infoslice.trace(model, x[:1])
    group = graph.group("a")
    found = collect(model, Inputs.of(x), ["a", "first", "both"])
    statistics = GroupStatistics(group, model, lambda: found)
    for greedy in (False, True):
        scores = causal(statistics, noise_variance=0.5, ridge=1e-2, greedy=greedy)
        expected = torch.zeros(3, dtype=torch.float64)
        for layer in statistics.consumers:
            joint = layer.joint(0.5, 1e-2)
            y = list(range(joint.inputs, len(joint.covariance)))
            every = list(range(joint.inputs))
            for c in range(3):
                own = layer.variables[c].tolist()
                rest = [v for v in every if v not in own]
                expected[c] += _mi(joint.covariance, every, y) - _mi(joint.covariance, rest, y)
        assert statistics.consumers[1].variables[0].tolist() == list(range(36, 45))
        if greedy:
            assert scores.min().item() == pytest.approx(expected.min().item(), rel=1e-6)
        else:
            torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-9)


def test_a_dead_channel_tells_nothing():
    model = _mlp()
    with torch.no_grad():
        model[0].weight[2] = 0
    _, statistics = _statistics(model, torch.randn(100, 4, dtype=torch.float64))
    for score in ("marginal", "pairwise", "conditional", "output"):
        scores = causal(statistics, score=score)
        assert scores[2] == 0
        assert (scores[[0, 1, 3, 4, 5]] > 0).all()


def test_scores_do_not_depend_on_the_scale_of_outputs_or_hidden_channels():
    model, x = _mlp(), torch.randn(300, 4, dtype=torch.float64)
    before = causal(_statistics(model, x)[1], ridge=0.0)
    with torch.no_grad():
        model[2].weight *= torch.logspace(-3, 3, 5).double()[:, None]
        model[2].bias += 7
    after = causal(_statistics(model, x)[1], ridge=0.0)
    torch.testing.assert_close(before, after, rtol=1e-8, atol=0)


def test_too_few_samples_are_told():
    model, x = _mlp(8), torch.randn(4, 4, dtype=torch.float64)
    _, statistics = _statistics(model, x)
    with pytest.raises(ValueError, match=r"4 samples.*raise ridge or the number of samples"):
        causal(statistics, ridge=0.0)
    assert causal(statistics, ridge=1e-2).isfinite().all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"score": "joint"}, "got 'joint'"),
        ({"noise_variance": 0.0}, "noise_variance: expected > 0, got 0.0"),
        ({"noise_variance": float("nan")}, "noise_variance"),
        ({"ridge": -1.0}, "ridge: expected >= 0, got -1.0"),
    ],
)
def test_bad_arguments(options, text):
    _, statistics = _statistics(_mlp(), torch.randn(50, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=text):
        causal(statistics, **options)


def test_magnitudes_are_those_of_all_the_filters_of_a_channel():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    model = Sum()
    (group,) = infoslice.trace(model, torch.zeros(1, 1, 5, 5)).prunable
    nothing = GroupStatistics(group, model, lambda: pytest.fail("measured for nothing"))
    rows = torch.cat([model.a.weight.flatten(1), model.b.weight.flatten(1)], 1).detach().double()
    weights = filters(group, model)
    torch.testing.assert_close(l1_norm(nothing, weights), rows.abs().sum(1))
    torch.testing.assert_close(l2_norm(nothing, weights), rows.square().sum(1).sqrt())
    one, two = (partial(random, seed=s)(nothing, weights) for s in (0, 1))
    assert torch.equal(one, random(nothing, weights))
    assert not torch.equal(one, two)
