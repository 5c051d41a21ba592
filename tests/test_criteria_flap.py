"""FLAP against its meaning and the rules of its released code."""

import numpy as np
import pytest
import torch
from torch import nn

from activations import arrays, linear_statistics, mlp, statistics_of
from infoslice.criteria import flap


def test_wifv_is_the_error_of_replacing_the_channel_by_its_mean():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5)).double()
    x = torch.randn(300, 4, dtype=torch.float64)
    with torch.no_grad():
        hidden = model[:2](x)
        for c, score in enumerate(flap(statistics_of(model, x, "0"), standardized=False).tolist()):
            replaced = hidden.clone()
            replaced[:, c] = hidden[:, c].mean()
            error = (model[2](hidden) - model[2](replaced)).square().sum(1).mean()
            assert score == pytest.approx(error.item(), rel=1e-9)


@pytest.mark.parametrize("squared", [False, True])
def test_standardised_flap_is_the_mean_of_z_scores_of_columns(squared):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 12)) * np.linspace(0.2, 3, 12)
    s, w = np.cov(x.T, ddof=0), generator.normal(size=(5, 12))
    statistics = linear_statistics(s, w, width=3)  # four heads of width three
    columns = s.diagonal() * (w**2).sum(0)
    if squared:
        columns = columns**2
    z = (columns - columns.mean()) / columns.std(ddof=1)
    got = flap(statistics, standardized=True, squared_heads=squared)
    np.testing.assert_allclose(got, z.reshape(4, 3).mean(1), rtol=1e-10)
    single = linear_statistics(s, w)  # one variable a channel: never squared
    assert torch.equal(flap(single, squared_heads=squared), flap(single))


def test_standardised_scores_do_not_depend_on_the_scale_of_a_layer():
    _, statistics = mlp()
    layer = statistics.consumers[0]
    mean, s, w, _ = arrays(layer)
    larger = linear_statistics(s * 100, w * 7, mean=mean * 10)
    same = linear_statistics(s, w, mean=mean)
    for metric in ("wifv", "wifn"):
        got, expected = (flap(t, metric=metric, standardized=True) for t in (larger, same))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        assert abs(float(got.mean())) < 1e-12
        assert float(got.std()) == pytest.approx(1)


def test_equal_channels_are_told_to_be_equal():
    statistics = linear_statistics(np.eye(5) * 0.1, np.full((3, 5), 0.3))
    assert torch.equal(flap(statistics, standardized=True), torch.zeros(5, dtype=torch.float64))
    single = linear_statistics(np.eye(1), np.ones((2, 1)))
    assert flap(single, standardized=True).tolist() == [0]
