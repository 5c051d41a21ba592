"""Bias of Gaussian entropies and informations against Monte Carlo and a known case."""

import math

import numpy as np
import pytest
import torch

from infoslice.statistics import (
    corrected_gaussian_mi,
    gaussian_entropy_bias,
    gaussian_mi_bias,
)


@pytest.mark.parametrize(("count", "dims"), [(12, 3), (40, 16), (30, 29)])
def test_entropy_bias_is_the_mean_error(count, dims):
    """The log-determinant of Wishart matrices, drawn as sums of log chi-squares (Bartlett)."""
    rng = np.random.default_rng(0)
    draws = 40_000
    freedoms = count - np.arange(1, dims + 1)
    logdet = np.log(rng.chisquare(freedoms, (draws, dims))).sum(1)
    for correction in (0, 1):
        errors = 0.5 * (logdet - dims * math.log(count - correction))
        bias = gaussian_entropy_bias(count, dims, correction=correction)
        assert abs(errors.mean() - bias) < 5 * errors.std() / math.sqrt(draws)
        assert bias < 0


def test_corrected_information_of_independent_variables_is_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    raw, corrected = [], []
    for _ in range(300):
        z = torch.randn(40, 11, generator=generator, dtype=torch.float64)
        cov = torch.cov(z.T, correction=0)
        found = corrected_gaussian_mi(cov, range(6), range(6, 11), 40)
        corrected.append(found)
        raw.append(found + gaussian_mi_bias(40, 6, 5))
    error = np.std(corrected) / math.sqrt(len(corrected))
    assert abs(np.mean(corrected)) < 4 * error
    assert np.mean(raw) > 10 * error
    # the first order, and a conditional one by the chain rule
    assert math.isclose(gaussian_mi_bias(1e6, 6, 5), 30 / 2e6, rel_tol=1e-3)
    chain = gaussian_mi_bias(40, 7, 5) - gaussian_mi_bias(40, 3, 5)
    assert math.isclose(gaussian_mi_bias(40, 4, 5, given=3), chain, rel_tol=1e-9)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="more samples than the 8 variables"):
        gaussian_mi_bias(8, 4, 4)
    with pytest.raises(ValueError, match="leading minor 2"):
        corrected_gaussian_mi(torch.ones(2, 2), [0], [1], 40)
