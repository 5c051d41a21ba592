"""Criteria on means and covariances, against their formulas by brute force."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import infoslice
from infoslice import criteria
from infoslice.group_statistics import GroupStatistics
from infoslice.perturbation import Inputs
from infoslice.refinement import swaps
from infoslice.statistics import collect


class Two(nn.Module):
    """Group a is read by two layers, one of a 3x3 receptive field with channels of group b."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 1), nn.Conv2d(2, 3, 1)
        self.first, self.both = nn.Conv2d(5, 4, 1, bias=False), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        return self.first(a)[:, :, 1:-1, 1:-1] + self.both(torch.cat([b, a], 1))


def _measured(model, x, name):
    group = infoslice.trace(model, x[:1]).group(name)
    found = collect(model, Inputs.of(x), [*group.consumers])
    return GroupStatistics(group, model, lambda: found)


@pytest.fixture(scope="module")
def two():
    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(6, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        a, b = model.a(x).relu(), model.b(x).relu()
    patches = nn.functional.unfold(torch.cat([b, a], 1), 3).transpose(1, 2).reshape(-1, 72)
    layers = [
        # X, W, columns of channel c, whether the layer has a bias
        (
            a.movedim(1, -1).reshape(-1, 5), model.first.weight.flatten(1),
            [[c] for c in range(5)], 0,
        ),
        (
            patches, model.both.weight.flatten(1),
            [list(range(27 + 9 * c, 36 + 9 * c)) for c in range(5)], 1,
        ),
    ]  # fmt: skip
    layers = [(x.numpy(), w.detach().numpy(), v, shift) for x, w, v, shift in layers]
    return _measured(model, x, "a"), layers


FORMULAS = {
    "wanda_sp": lambda x, w, v: (np.abs(w).mean(0) * np.sqrt((x**2).mean(0)))[v].sum(),
    "flap": lambda x, w, v: (x.var(0) * (w**2).sum(0))[v].sum(),
    "flap wifn": lambda x, w, v: (np.sqrt((x**2).mean(0)) * np.abs(w).sum(0))[v].sum(),
    "flap ifv": lambda x, w, v: x.var(0)[v].sum(),
    "leverage": lambda x, w, v: np.diag(
        (x.T @ x / len(x))
        @ np.linalg.inv(x.T @ x / len(x) + 0.1 * (x**2).mean() * np.eye(x.shape[1]))
    )[v].sum(),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_scores_are_the_formula_summed_over_layers_and_variables(two, case):
    statistics, layers = two
    name, _, metric = case.partition(" ")
    options = {"metric": metric} if metric else {"ridge": 0.1} if name == "leverage" else {}
    got = criteria.CRITERIA[name](statistics, (), **options)
    expected = [sum(FORMULAS[case](x, w, v[c]) for x, w, v, _ in layers) for c in range(5)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_averages_over_layers_and_variables(two):
    statistics, layers = two
    for name, square in (("variance", np.var), ("activation_norm", lambda x, _: (x**2).mean(0))):
        each = [[square(x, 0)[v[c]].mean() for x, _, v, _ in layers] for c in range(5)]
        expected = torch.tensor(each).mean(1)
        got = criteria.CRITERIA[name](statistics)
        torch.testing.assert_close(got, expected.sqrt() if name != "variance" else expected)


def _error(layers, kept, ridge=1e-2):
    """Relative, of the best weights on the channels kept, with the ridge in the moments."""
    total = 0.0
    for x, w, v, shift in layers:
        plain = np.cov(x.T, ddof=0) if shift else x.T @ x / len(x)
        h = plain + ridge * np.diag(np.diag(plain))
        gone = sorted(i for c in range(5) if c not in kept for i in v[c])
        s = [i for i in range(len(h)) if i not in gone]
        left = h - h[:, s] @ np.linalg.inv(h[np.ix_(s, s)]) @ h[s]
        total += np.trace(w @ left @ w.T) / np.trace(w @ plain @ w.T)
    return total


def test_obs_is_the_growth_of_the_error_of_the_best_weights(two):
    statistics, layers = two
    every = set(range(5))
    expected = [_error(layers, every - {c}) for c in every]
    torch.testing.assert_close(
        criteria.obs(statistics, greedy=False), torch.tensor(expected, dtype=torch.float64)
    )
    left, last = set(every), 0.0
    scores = criteria.obs(statistics)
    while left:
        losses = {c: _error(layers, left - {c}) - _error(layers, left) for c in left}
        least = min(left, key=losses.__getitem__)
        last = max(last, losses[least])
        assert scores[least].item() == pytest.approx(last, rel=1e-6)
        left.remove(least)


def test_swaps_find_the_best_pair_from_any_start(two):
    statistics, layers = two
    errors = {pair: _error(layers, pair) for pair in itertools.combinations(range(5), 2)}
    for start, error in errors.items():
        found = swaps(statistics, torch.tensor(start))
        assert _error(layers, found.tolist()) <= error + 1e-12
        better = [
            _error(layers, {*found.tolist()} - {out} | {new})
            for out in found.tolist() for new in range(5) if new not in found.tolist()
        ]  # fmt: skip
        assert min(better) >= _error(layers, found.tolist()) - 1e-9  # no exchange lowers it
    assert swaps(statistics, torch.arange(5)).tolist() == list(range(5))
    assert swaps(statistics, torch.tensor([0, 1]), max_swaps=0).tolist() == [0, 1]


def _twins(pairs=12, outputs=9, eps=0.05, seed=0):
    """Every channel has a twin that differs by a little noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3 * pairs, 2 * pairs), nn.Linear(2 * pairs, outputs)).double()
    with torch.no_grad():
        source = torch.eye(pairs, dtype=torch.float64)
        model[0].weight.zero_()
        model[0].weight[:, :pairs] = torch.cat([source, source])
        model[0].weight[:, pairs:] = eps * torch.eye(2 * pairs, dtype=torch.float64)
        model[1].weight.copy_(torch.randn(outputs, 2 * pairs, generator=generator))
    x = torch.randn(3000, 3 * pairs, generator=generator, dtype=torch.float64)
    return model, x


def _lost(model, x, keep):
    """Relative squared error of the second layer's output after the best refit."""
    with torch.no_grad():
        hidden = model[0](x)
        y = model[1](hidden)
    a = torch.cat([hidden[:, keep], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    left = y - a @ torch.linalg.lstsq(a, y).solution
    return float(left.square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("name", ["causal", "obs", "greedy_mi"])
def test_greedy_criteria_keep_one_of_each_pair_of_twins(name):
    model, x = _twins()
    statistics = _measured(model, x, "0")
    keep = criteria.CRITERIA[name](statistics).topk(12).indices
    assert sorted((keep % 12).tolist()) == list(range(12))
    for other in ("flap", "wanda_sp", "variance", "leverage", "activation_norm"):
        kept = criteria.CRITERIA[other](statistics).topk(12).indices
        assert _lost(model, x, kept) > 10 * _lost(model, x, keep)


def test_forward_selection_by_brute_force_and_its_dial():
    model, x = _twins(pairs=3, outputs=4, eps=0.5)
    statistics = _measured(model, x, "0")
    (layer,) = statistics.consumers
    scores = criteria.greedy_mi(statistics, noise_variance=0.3)
    joint = layer.joint(0.3, 1e-4)
    chosen, gains = [], []
    while len(chosen) < 6:
        have = joint.information(torch.tensor(chosen, dtype=torch.int64))
        gain = {
            c: joint.information(torch.tensor([*chosen, c])) - have
            for c in range(6) if c not in chosen
        }  # fmt: skip
        best = max(gain, key=gain.__getitem__)
        chosen.append(best)
        gains.append(gain[best])
    assert scores.argsort(descending=True).tolist() == chosen
    assert scores[chosen[0]].item() == pytest.approx(gains[0], rel=1e-9)
    # For large noise a nat is a share of explained variance: backward it is the order of OBS.
    order = criteria.causal(statistics, noise_variance=1e6, ridge=1e-9).argsort()
    scaled = model[1].weight / model[1](model[0](x)).std(0)[:, None]
    with torch.no_grad():
        model[1].weight.copy_(scaled)
    assert criteria.obs(_measured(model, x, "0"), ridge=1e-9).argsort().tolist() == order.tolist()


def test_dead_channels_go_first_and_nothing_is_divided_by_zero():
    model, x = _twins(pairs=3)
    with torch.no_grad():
        model[0].weight[4] = 0
        model[0].bias[4] = 0
    statistics = _measured(model, x, "0")
    for name in ("flap", "wanda_sp", "variance", "activation_norm", "leverage", "obs", "greedy_mi"):
        scores = criteria.CRITERIA[name](statistics)
        assert scores.isfinite().all()
        assert scores.argmin() == 4
        assert scores[4].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("flap", {"metric": "wi"}, "metric: expected one of"),
        ("leverage", {"ridge": 0.0}, "ridge: expected > 0"),
        ("obs", {"ridge": -1.0}, "ridge: expected > 0"),
        ("greedy_mi", {"noise_variance": 0.0}, "noise_variance: expected > 0"),
        ("greedy_mi", {"ridge": -1.0}, "ridge: expected >= 0"),
    ],
)
def test_bad_options(two, name, options, text):
    with pytest.raises(ValueError, match=f"{name}: argument {text}"):
        criteria.CRITERIA[name](two[0], (), **options)
    with pytest.raises(ValueError, match="swaps: argument"):
        swaps(two[0], torch.tensor([0]), max_swaps=-1)


def test_refinement_mends_a_bad_selection():
    model, x = _twins()
    lost = {}
    by_loss = partial(swaps, curvature="squared_error")
    for refinement in ("none", "swaps", by_loss):
        result = infoslice.prune(
            model, x[:1], data=x, criterion="variance", pruning_ratio=0.5, refinement=refinement,
            show_progress=False,
        )  # fmt: skip
        lost[refinement] = _lost(model, x, result.plan.keep["0"])
    assert lost["swaps"] < 0.1 * lost["none"]
    assert lost[by_loss] < 0.1 * lost["none"]


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_what_cannot_be_refined_is_named_and_stays_as_selected(allocation):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3),
    )  # fmt: skip
    x = torch.randn(24, 3, 10, 10)
    found = {}
    for refinement in ("none", "swaps"):
        found[refinement] = infoslice.prune(
            model, x[:1], data=x, criterion="l2_norm", allocation=allocation, compensation="none",
            refinement=refinement, show_progress=False,
        )  # fmt: skip
    report = found["swaps"].report
    assert set(report.not_refined) == {"0#2"}  # channels within a group of the second
    assert "not refined: 0#2: '2' is a Conv2d" in str(report)
    assert not found["none"].report.not_refined
    for name in report.not_refined:
        kept = (f.plan.keep.get(name, torch.empty(0)).tolist() for f in found.values())
        assert len(set(map(tuple, kept))) == 1
