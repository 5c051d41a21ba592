"""Structured OBS against least squares solved anew for every candidate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from activations import GivenStatistics, arrays, least_squares, linear_statistics, mlp, two
from infoslice.criteria import causal, obs
from infoslice.refinement import swaps


def _regularised(layer, centred, ridge):
    mean, s, w, variables = arrays(layer)
    h = s if centred else s + np.outer(mean, mean)
    return h + ridge * np.diag(h.diagonal()), h, w, variables


def _errors(statistics, removed, centred, ridge, relative):
    """Of all layers when the channels in ``removed`` go, by the normal equations."""
    total = 0.0
    for layer in statistics.consumers:
        h, plain, w, variables = _regularised(layer, centred, ridge)
        gone = {v for c in removed for v in variables[c]}
        error = least_squares(h, w, [v for v in range(len(h)) if v not in gone])
        total += error / (np.trace(w @ plain @ w.T) if relative else 1.0)
    return total


@pytest.mark.parametrize("make", [mlp, two])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_one_shot_is_the_error_after_the_best_refit(make, centred, relative):
    _, statistics = make()
    options = {"centred": centred, "ridge": 1e-2, "relative": relative}
    expected = [_errors(statistics, [c], **options) for c in range(statistics.channels)]
    got = obs(statistics, greedy=False, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("make", [mlp, two])
def test_greedy_takes_the_least_error_at_every_step(make):
    _, statistics = make()
    options = {"centred": True, "ridge": 1e-3, "relative": True}
    got = obs(statistics, ridge=1e-3)
    removed, before = [], 0.0
    for c in got.argsort().tolist():
        left = [k for k in range(statistics.channels) if k not in removed]
        errors = {k: _errors(statistics, [*removed, k], **options) for k in left}
        assert errors[c] == pytest.approx(min(errors.values()), rel=1e-8)
        removed.append(c)
        assert got[c] >= errors[c] - before - 1e-12
        before = errors[c]
    # All are gone, and with them all that the group contributes.
    assert before <= float(got.sum()) + 1e-9


def test_a_head_counts_as_one():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 12)) @ generator.normal(size=(12, 12))
    s, w = np.cov(x.T, ddof=0), generator.normal(size=(5, 12))
    statistics = linear_statistics(s, w, width=3)
    options = {"centred": True, "ridge": 1e-9, "relative": False}
    for greedy in (False, True):
        got = obs(statistics, greedy=greedy, ridge=1e-9, relative=False)
        expected = [_errors(statistics, [c], **options) for c in range(4)]
        assert float(got.min()) == pytest.approx(min(expected), rel=1e-8)
        if not greedy:
            np.testing.assert_allclose(got, expected, rtol=1e-8)


def test_relative_scores_are_shares_of_the_variance():
    _, statistics = mlp()
    mean, s, w, _ = arrays(statistics.consumers[0])
    total = float(obs(statistics, ridge=1e-9).sum())
    assert total == pytest.approx(1, rel=1e-5)  # whatever goes, goes in the end
    scaled = linear_statistics(s * 9, w * 5, mean=mean)
    torch.testing.assert_close(obs(scaled), obs(statistics), rtol=1e-9, atol=0)


def test_greedy_tells_twins_apart_and_one_shot_does_not():
    generator = np.random.default_rng(0)
    sources = generator.normal(size=(500, 6))
    x = np.concatenate([sources, sources + 1e-2 * generator.normal(size=(500, 6))], 1)
    w = generator.normal(size=(4, 12))
    w[:, [3, 9]] *= 10  # a twin pair that matters more than any other channel
    statistics = linear_statistics(np.cov(x.T, ddof=0), w)
    kept = obs(statistics, ridge=1e-6).topk(6).indices
    assert sorted((kept % 6).tolist()) == list(range(6))
    once = obs(statistics, greedy=False, ridge=1e-6)
    assert float(once.max()) < 1e-2  # no channel seems worth anything


def test_channels_that_do_not_vary_go_first():
    s = np.diag([1.0, 0.0, 2.0, 0.0])
    statistics = linear_statistics(s, np.full((2, 4), 3.0))
    for greedy in (True, False):
        got = obs(statistics, greedy=greedy)
        assert got[1] == got[3] == 0
        assert (got[[0, 2]] > 0).all()
    assert torch.equal(obs(linear_statistics(s * 0, np.ones((2, 4)))), torch.zeros(4).double())
    # Uncentred, a constant that is not 0 counts.
    constant = linear_statistics(s, np.full((2, 4), 3.0), mean=np.array([0.0, 1.0, 0.0, 0.0]))
    got = obs(constant, centred=False)
    assert got[1] > 0
    assert got[3] == 0


@pytest.mark.parametrize("criterion", [obs, causal])
def test_what_was_removed_before_makes_up_for_nothing(criterion):
    """A layer reads a and, beside it, channels that repeat a, of which all weights are silenced."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 4))
    s = np.cov(np.concatenate([x, x + 0.01 * generator.normal(size=x.shape)], 1).T, ddof=0)
    w = generator.normal(size=(3, 8))
    w[:, 4:] = 0
    both = linear_statistics(s, w).consumers[0]
    group = GivenStatistics([replace(both, variables=torch.arange(4)[:, None])])
    alone = linear_statistics(s[:4, :4], w[:, :4])
    for greedy in (False, True):
        torch.testing.assert_close(criterion(group, greedy=greedy), criterion(alone, greedy=greedy))
    assert torch.equal(swaps(group, torch.tensor([0, 1])), swaps(alone, torch.tensor([0, 1])))


def test_refusals():
    _, statistics = mlp(samples=4)
    for greedy in (True, False):
        with pytest.raises(ValueError, match=r"obs: argument ridge: .*4 samples.*raise ridge"):
            obs(statistics, greedy=greedy, ridge=1e-30)
    assert obs(statistics).isfinite().all()
    with pytest.raises(ValueError, match="obs: argument ridge: expected > 0, got -1"):
        obs(statistics, ridge=-1.0)
    with pytest.raises(ValueError, match="got nan"):
        obs(statistics, ridge=float("nan"))
