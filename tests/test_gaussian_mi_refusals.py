"""Gaussian information of what has none, has too much, or is no covariance; and bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from information import EVERY, GROUPED, call, linear_layer
from infoslice import ops


def without(cov: torch.Tensor, variable: int) -> torch.Tensor:
    """The covariance with one variable a constant."""
    cov = cov.clone()
    cov[..., variable, :] = cov[..., :, variable] = 0
    return cov


def test_constants_carry_no_information(spd):
    cov = spd(9, 20.0)
    dead = without(cov, 2)
    x, y = [0, 1, 2, 3], [5, 6]
    for name in ("marginal_mi", "pairwise_mi"):
        nats, info = call(name, dead, x, y)
        assert not info.any()
        expected = call(name, cov, x, y).nats
        assert nats[2] == 0.0
        torch.testing.assert_close(nats[[0, 1, 3]], expected[[0, 1, 3]])
        nats, info = call(name, dead, x, y, 2)  # a group keeps what its other members carry
        assert not info.any()
        alone = call(name, cov, [3], y).nats[0]
        torch.testing.assert_close(nats[1], alone, rtol=0, atol=1e-13)
        nats, info = call(name, without(dead, 3), x, y, 2)
        assert nats[1] == 0.0
        assert not info.any()
    whole, info = ops.gaussian_mi(dead, x, y)
    torch.testing.assert_close(whole, ops.gaussian_mi(cov, [0, 1, 3], y).nats, rtol=0, atol=1e-13)
    assert not info.any()
    # the same on the other side, so that I(X; Y) = I(Y; X) holds for them too
    torch.testing.assert_close(ops.gaussian_mi(dead, y, x).nats, whole, rtol=0, atol=1e-13)
    nats, info = ops.pairwise_mi(dead, y, x)
    torch.testing.assert_close(nats, ops.pairwise_mi(cov, y, [0, 1, 3]).nats, rtol=0, atol=1e-13)
    assert not info.any()
    nats, info = ops.gaussian_mi(without(dead, 3), [0], [2, 3])
    assert (nats.item(), info.item()) == (0.0, 0)
    # with noise a constant output is the noise, of which X knows nothing
    nats, info = ops.marginal_mi(dead, [0, 1], [2], noise_variance=0.5)
    assert torch.equal(nats, torch.zeros(2, dtype=torch.float64))
    assert not info.any()


def test_a_constant_makes_the_conditional_singular(spd):
    dead = without(spd(7, 20.0), 1)
    for group_size in (1, 2):
        nats, info = ops.conditional_mi(dead, [0, 1, 2, 3], [5, 6], group_size=group_size)
        assert nats.isnan().all()
        assert (info == 2).all()  # the second in the order x, y


def test_no_variance_but_covariance_is_not_a_covariance_matrix(spd):
    cov = spd(6, 5.0)
    cov[1, 1] = 0
    nats, info = ops.marginal_mi(cov, [0, 1, 2], [4, 5])
    assert info.tolist() == [0, 3, 0]
    assert nats[1].isnan()
    assert nats[[0, 2]].isfinite().all()
    nats, info = ops.marginal_mi(cov, [0, 2], [5, 1])
    assert info.tolist() == [2, 2]
    assert nats.isnan().all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_deterministic_relations_are_told_and_never_infinite(scale, spd):
    """Y = W X without noise: what would be infinite, or is as large as rounding lets it be."""
    cov, _, _, x, y, _ = linear_layer(5, 5, 0.0, spd, condition=3.0)
    cov = cov * scale
    for name in ("gaussian_mi", "marginal_mi", "conditional_mi"):
        nats, info = call(name, cov, x, y)
        assert (info > 0).all(), name
        assert nats.isnan().all()
        # the smallest share of noise makes it finite
        nats, info = call(name, cov, x, y, noise_variance=1e-9 * scale)
        assert not info.any()
        assert nats.isfinite().all()
    nats, info = ops.pairwise_mi(cov, x, y)  # no single output determines an input
    assert not info.any()
    assert nats.isfinite().all()


def test_info_names_the_variable(spd):
    cov = spd(8, 5.0)
    twin = cov.clone()  # 6 becomes twice 1
    twin[6, :] = 2 * twin[1, :]
    twin[:, 6] = 2 * twin[:, 1]
    twin[6, 6] = 4 * twin[1, 1]
    # marginal, order y, X_g: 6 given 1 in y, for the group that holds it
    assert ops.marginal_mi(twin, [0, 6, 3], [2, 1]).info.tolist() == [0, 3, 0]
    assert ops.marginal_mi(twin, [0, 3, 5, 6], [2, 1], group_size=2).info.tolist() == [0, 4]
    assert ops.marginal_mi(twin, [0, 3], [1, 2, 6]).info.tolist() == [3, 3]
    assert ops.marginal_mi(twin, [0, 3, 1, 6], [2, 4], group_size=2).info.tolist() == [0, 4]
    assert ops.gaussian_mi(twin, [0, 6], [2, 1]).info.item() == 4
    # conditional, order x, y
    assert ops.conditional_mi(twin, [0, 1, 6], [2]).info.tolist() == [3, 3, 3]
    assert ops.conditional_mi(twin, [0, 6], [2, 1]).info.tolist() == [4, 4]
    # pairwise, order X_g, y
    assert ops.pairwise_mi(twin, [0, 6], [2, 1]).info.tolist() == [0, 3]
    assert ops.pairwise_mi(twin, [0, 3, 6, 5], [2, 1], group_size=2).info.tolist() == [0, 4]
    assert ops.pairwise_mi(twin, [0, 3, 1, 6], [2], group_size=2).info.tolist() == [0, 2]
    # with noise on y none of it is exact
    assert not ops.marginal_mi(twin, [0, 6, 3], [2, 1], noise_variance=0.1).info.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
@pytest.mark.parametrize("name", EVERY)
def test_one_bad_matrix_does_not_touch_the_others(name, bad, spd):
    cov = spd(6, 5.0, (3,))
    good = call(name, cov, [0, 1], [2, 3], 2).nats
    for row, column in [(0, 0), (1, 0), (2, 0), (3, 1), (3, 3)]:
        if bad == -1.0 and row != column:
            continue
        spoilt = cov.clone()
        spoilt[1, row, column] = bad
        nats, info = call(name, spoilt, [0, 1], [2, 3], 2)
        assert (info[1] > 0).all()
        assert nats[1].isnan().all()
        assert torch.equal(nats[[0, 2]], good[[0, 2]])
        assert not info[[0, 2]].any()
    spoilt = cov.clone()
    spoilt[1, 5, :] = bad  # a variable that is not asked for
    assert torch.equal(call(name, spoilt, [0, 1], [2, 3], 2).nats, good)


# ---- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        ([], [1], "x: expected at least one index, got none"),
        ([0], [], "y: expected at least one index, got none"),
        ([0, 6], [1], r"x: expected indices in \[0, 6\), got 6"),
        ([0], [-1], r"y: expected indices in \[0, 6\), got -1"),
        ([0, 2, 0], [1], "x: expected indices without repetition, got 0 twice"),
        ([0], [1, 1], "y: expected indices without repetition, got 1 twice"),
        ([0, 3], [1, 3], "y: expected indices disjoint from x, got 3 in both"),
    ],
)
def test_bad_indices(name, x, y, text, spd):
    for cov in (spd(6), spd(6).numpy()):
        with pytest.raises(ValueError, match=f"{name}: {text}"):
            call(name, cov, x, y)


@pytest.mark.parametrize("name", EVERY)
def test_indices_that_are_no_integers(name, spd):
    for bad in ([0.5], "01", [None], np.array([True, False]), torch.ones(2, 2).long(), 3):
        with pytest.raises(TypeError, match=f"{name}: x: expected a list of integers"):
            call(name, spd(6), bad, [4])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("noise", [-1e-9, np.nan, np.inf])
def test_bad_noise(name, noise, spd):
    with pytest.raises(ValueError, match=rf"{name}: noise_variance: expected a finite .* got"):
        call(name, spd(4), [0], [1], noise_variance=noise)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("group_size", [0, -1, 2, 4])
def test_bad_group_size(name, group_size, spd):
    text = f"{name}: group_size: expected a divisor of the 3 entries of x, got {group_size}"
    with pytest.raises(ValueError, match=text):
        call(name, spd(6), [0, 1, 2], [5], group_size)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("cov", "error", "text"),
    [
        (torch.eye(3)[:2], ValueError, r"square matrices .* got shape \[2, 3\]"),
        (torch.ones(4), ValueError, r"at least 2 dimensions, .* got shape \[4\]"),
        (torch.eye(4).half(), TypeError, "float32, float64, got float16"),
        ("cov", TypeError, "a NumPy array or a torch tensor, got str"),
    ],
)
def test_bad_covariances(name, cov, error, text):
    with pytest.raises(error, match=f"{name}: cov: expected .*{text}"):
        call(name, cov, [0], [1])


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_is_refused_and_not_cut(name, spd):
    cov = spd(4).requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{name}: cov: .* requires grad"):
        call(name, cov, [0], [1])
    with torch.no_grad():
        assert call(name, cov, [0], [1]).nats.isfinite().all()
