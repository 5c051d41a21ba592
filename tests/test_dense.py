"""Matrices of several row blocks (csrc/cpu/dense.h) through the ops that factor them one by one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from infoslice import ops

# Around one, two and three blocks of 192 rows, and around whole and half registers.
ORDERS = [65, 68, 95, 96, 97, 100, 191, 192, 193, 200, 250, 383, 384, 385, 400, 577]
DTYPES = [torch.float64, torch.float32]


def hidden_upper(a: torch.Tensor) -> torch.Tensor:
    """NaN where nothing may be read."""
    return a.masked_fill(torch.ones_like(a, dtype=torch.bool).triu(1), float("nan"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", ORDERS)
def test_factors(d, dtype, spd):
    eps = torch.finfo(dtype).eps
    a = spd(d, 100.0, (3,)).to(dtype)
    factor, info = ops.cholesky(hidden_upper(a))
    assert not info.any()
    assert torch.equal(factor, factor.tril())
    exact = torch.linalg.cholesky(a.double())
    assert (factor.double() - exact).abs().max() <= 100 * d * eps
    product = factor.double() @ factor.double().mT
    assert (product - a.double()).abs().max() <= d * eps
    value, info = ops.logdet(hidden_upper(a))
    assert not info.any()
    expected = 2 * exact.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    bound = 100 * d * eps + eps * expected.abs().max()
    assert (value.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [191, 194, 256, 386])
def test_inverts(d, dtype, spd):
    a = spd(d, 100.0, (2,)).to(dtype)
    inverse = np.linalg.inv(a.double().numpy())
    bound = (4 * d * 2.3e-16 * 100 + torch.finfo(dtype).eps) * np.abs(inverse).max()
    diagonal, info = ops.precision_diagonal(hidden_upper(a))
    assert not info.any()
    expected = np.diagonal(inverse, axis1=-2, axis2=-1)
    assert np.abs(diagonal.double().numpy() - expected).max() <= bound
    for b in (2, d // 2, d) if d % 2 == 0 else (1, d):
        blocks, info = ops.precision_blocks(hidden_upper(a), b)
        assert not info.any()
        expected = np.stack([inverse[:, i : i + b, i : i + b] for i in range(0, d, b)], 1)
        assert np.abs(blocks.double().numpy() - expected).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [193, 400])
def test_the_row_that_fails_is_told(d, dtype, spd):
    for k in (1, 7, 100, 192, 193, d):
        for value in (-1.0, float("nan"), float("inf")):
            a = spd(d, 10.0, (2,)).to(dtype)
            a[0, k - 1, k - 1] = value
            for function in (ops.cholesky, ops.logdet, ops.precision_diagonal):
                result, info = function(a)
                assert info.tolist() == [k, 0]
                assert (
                    result[0].tril().isnan().any() if result.ndim == 3 else result[0].isnan().any()
                )
                assert result[1].isfinite().all()


@pytest.mark.parametrize(("nx", "ny"), [(180, 30), (200, 190), (30, 300)])
@pytest.mark.parametrize("group_size", [1, 10])
def test_information(nx, ny, group_size, spd):
    s = spd(nx + ny, 100.0)
    x, y = list(range(nx)), list(range(nx, nx + ny))
    starts = range(0, nx, group_size)

    def logdets(matrices) -> torch.Tensor:
        return torch.stack([torch.linalg.slogdet(m)[1] for m in matrices])

    def blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
        return [matrix[i : i + group_size, i : i + group_size] for i in starts]

    given_y = s[:nx, :nx] - s[:nx, nx:] @ torch.linalg.solve(s[nx:, nx:], s[nx:, :nx])
    expected = 0.5 * (logdets(blocks(s)[: len(starts)]) - logdets(blocks(given_y)))
    nats, info = ops.marginal_mi(hidden_upper(s), x, y, group_size=group_size)
    assert not info.any()
    torch.testing.assert_close(nats, expected, rtol=1e-9, atol=1e-10)
    joint, alone = torch.linalg.inv(s), torch.linalg.inv(s[:nx, :nx])
    expected = 0.5 * (logdets(blocks(joint)[: len(starts)]) - logdets(blocks(alone)))
    nats, info = ops.conditional_mi(hidden_upper(s), x, y, group_size=group_size)
    assert not info.any()
    torch.testing.assert_close(nats, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.8, 0.999])
def test_pairs_of_any_strength(strength):
    """Shares from nothing to nearly all, so that joined logarithms and single ones both occur."""
    nx, ny = 21, 37
    source = torch.randn(4000, 1, dtype=torch.float64)
    data = torch.randn(4000, nx + ny, dtype=torch.float64)
    weights = strength * torch.rand(nx + ny, dtype=torch.float64)
    weights[[0, nx]] = strength  # one pair at full strength
    cov = torch.cov((weights * source + (1 - weights.square()).sqrt() * data).T)
    rho2 = cov[:nx, nx:].square() / (cov.diagonal()[:nx, None] * cov.diagonal()[nx:])
    nats, info = ops.pairwise_mi(cov, range(nx), range(nx, nx + ny))
    assert not info.any()
    torch.testing.assert_close(nats, -0.5 * torch.log1p(-rho2).sum(1), rtol=1e-12, atol=1e-15)
    cov[nx + 30, 5] = cov[5, nx + 30] = (cov[5, 5] * cov[nx + 30, nx + 30]).sqrt()
    nats, info = ops.pairwise_mi(cov, range(nx), range(nx, nx + ny))
    assert info.tolist() == [32 if i == 5 else 0 for i in range(nx)]
    assert nats.isnan().tolist() == [i == 5 for i in range(nx)]


def test_one_large_matrix_is_the_same_for_every_number_of_threads():
    d = 2200
    x = torch.randn(d, d + 50, dtype=torch.float32)
    a = x @ x.T / d
    try:
        torch.set_num_threads(1)
        one = ops.cholesky(a).factor, ops.logdet(a).logdet
        torch.set_num_threads(3)
        many = ops.cholesky(a).factor, ops.logdet(a).logdet
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])
    assert (one[0] @ one[0].T - a).abs().max() <= 1e-4


@pytest.mark.parametrize("level", ["baseline", "v3"])
def test_every_cpu_level(level):
    tests = [f"{__file__}::{name}" for name in ("test_factors", "test_inverts", "test_information")]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            *tests,
            f"{__file__}::test_pairs_of_any_strength",
        ],
        check=True,
        env={**os.environ, "INFOSLICE_CPU_LEVEL": level},
        timeout=300,
    )
