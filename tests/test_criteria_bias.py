"""Informations of few samples against those of the true covariance."""

import pytest
import torch
from sklearn.covariance import oas

import infoslice
from activations import GivenStatistics, linear_statistics, mlp
from infoslice.criteria import causal
from infoslice.group_statistics import LayerStatistics

DRAWS = 200


def _given(x, y, width=1):
    """Statistics of a layer whose output was measured."""
    moments = infoslice.Moments(
        len(x), x.mean(0), y.mean(0), *(
            (a - a.mean(0)).T @ (b - b.mean(0)) for a, b in ((x, x), (x, y), (y, y))
        )
    )  # fmt: skip
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64)
    layer = LayerStatistics(
        "reader", lambda: moments, lambda: moments, weight,
        torch.arange(x.shape[1]).view(-1, width),
    )  # fmt: skip
    return GivenStatistics([layer])


def _mean_scores(draw, **options):
    """Over many draws: the mean of all scores, plain and corrected, and its standard error."""
    found = []
    for _ in range(DRAWS):
        statistics = draw()
        both = [
            causal(statistics, ridge=0.0, bias_correction=on, **options).mean()
            for on in (False, True)
        ]
        found.append(torch.stack(both))
    scores = torch.stack(found)
    return scores.mean(0).tolist(), (scores.std(0) / DRAWS**0.5).tolist()


@pytest.mark.parametrize("score", ["marginal", "pairwise", "conditional", "output"])
@pytest.mark.parametrize("noise_variance", [1.0, 0.02])
def test_independent_inputs_and_outputs_tell_nothing_on_average(score, noise_variance):
    generator = torch.Generator().manual_seed(0)
    width = 1 if score == "output" else 2

    def draw():
        x, y = (torch.randn(150, k, generator=generator, dtype=torch.float64) for k in (12, 8))
        statistics = _given(x, y, width)
        if score == "output":
            layer = statistics.consumers[0]
            statistics.producers = (
                LayerStatistics(
                    "writer", layer.full, layer.diagonal, layer.weight, torch.arange(8)[:, None]
                ),
            )
            statistics.channels = 8
        return statistics

    options = {"score": score, "noise_variance": noise_variance, "greedy": False}
    (plain, corrected), (_, error) = _mean_scores(draw, **options)
    assert plain > 20 * error
    # What is left is of second order in 12 variables of 150 samples.
    assert abs(corrected) < 0.15 * plain + 3 * error


def test_a_marginal_of_a_linear_output_that_ignores_the_channel_is_nothing_on_average():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 10, generator=generator, dtype=torch.float64)
    weight[:, 0] = 0
    found = []
    for _ in range(DRAWS):
        x = torch.randn(100, 10, generator=generator, dtype=torch.float64)
        statistics = linear_statistics(torch.cov(x.T, correction=0), weight, count=100)
        found.append(
            [float(causal(statistics, score="marginal", bias_correction=b)[0]) for b in (0, 1)]
        )
    plain, corrected = torch.tensor(found).mean(0).tolist()
    assert abs(corrected) < 0.2 * plain


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("noise_variance", [1.0, 0.01])
@pytest.mark.parametrize("width", [1, 2])
def test_conditional_scores_of_few_samples_come_out_as_those_of_many(greedy, noise_variance, width):
    """Of 40 variables and 100 samples the lower half of the scores loses up to two fifths."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.eye(40) + torch.randn(40, 40, generator=generator, dtype=torch.float64) / 40**0.5
    weight = torch.randn(6, 40, generator=generator, dtype=torch.float64)

    def low(statistics, **more):
        options = {"ridge": 0.0, "greedy": greedy, "noise_variance": noise_variance}
        scores = causal(statistics, **options, **more).sort().values
        return float(scores[: len(scores) // 2].sum())

    found = []
    for _ in range(40):
        x = torch.randn(100, 40, generator=generator, dtype=torch.float64) @ mix.T
        cov = torch.cov(x.T, correction=0)
        statistics = linear_statistics(cov, weight, width=width, count=100)
        found.append([low(statistics), low(statistics, bias_correction=True)])
    true = low(linear_statistics(mix @ mix.T, weight, width=width))
    plain, corrected = (torch.tensor(found).mean(0) / true).tolist()
    assert plain < 0.9
    assert abs(corrected - 1) < 0.1


def test_greedy_corrections_are_of_all_that_is_gone_so_far():
    _, statistics = mlp(samples=60)
    plain = causal(statistics, ridge=0.0)
    corrected = causal(statistics, ridge=0.0, bias_correction=True)
    order = plain.argsort()
    assert torch.equal(order, corrected.argsort())
    of_five = {1: 1, 6: 5}  # five outputs: so many directions are lost at most
    for gone, rank in of_five.items():
        more = 60 / (60 - 1 - 6 + gone)
        lost = plain[order[:gone]].sum() * 2 / rank
        expected = rank / 2 * torch.log1p(more * torch.expm1(lost))
        got = corrected[order[:gone]].sum()
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_shrinkage_is_that_of_the_covariance():
    torch.manual_seed(0)
    x = torch.randn(20, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    weight = torch.randn(4, 12, dtype=torch.float64)
    statistics = linear_statistics(torch.cov(x.T, correction=0), weight, count=20)
    shrunk = linear_statistics(torch.from_numpy(oas(x.numpy())[0]), weight)
    for score in ("marginal", "pairwise", "conditional"):
        got = causal(statistics, score=score, shrinkage="oas", ridge=0.0)
        torch.testing.assert_close(got, causal(shrunk, score=score, ridge=0.0))


def test_refusals():
    statistics = mlp(samples=6)[1]
    with pytest.raises(ValueError, match=r"bias_correction: expected more samples.*6 samples"):
        causal(statistics, bias_correction=True)
    with pytest.raises(ValueError, match="bias_correction: expected False with shrinkage"):
        causal(statistics, bias_correction=True, shrinkage="oas")
    with pytest.raises(ValueError, match="sampling_errors=True"):
        causal(statistics, shrinkage="ledoit_wolf")
