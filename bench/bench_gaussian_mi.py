"""Information of all channels at once against closed forms and log-determinants one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice import ops, reference

NOISE = 0.1
INVERSES = "two torch.cholesky_inverse"
ONE_BY_ONE = "torch log-determinants one by one"


def layer(channels: int, outputs: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """Joint covariance of correlated inputs and a linear map of them, without its noise."""
    samples = torch.randn(2 * channels, channels, dtype=torch.float64)
    sx = samples.T @ samples / (2 * channels)
    w = torch.randn(outputs, channels, dtype=torch.float64) / channels**0.5
    cov = torch.cat([torch.cat([sx, sx @ w.T], 1), torch.cat([w @ sx, w @ sx @ w.T], 1)])
    return cov, list(range(channels)), list(range(channels, channels + outputs))


def noisy(cov: torch.Tensor, channels: int) -> torch.Tensor:
    noise = torch.zeros(len(cov), dtype=torch.float64)
    noise[channels:] = NOISE
    return cov + noise.diag()


def logdet(a: torch.Tensor) -> torch.Tensor:
    return 2 * torch.linalg.cholesky(a).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def precision(a: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal()


def conditional_by_inverses(cov: torch.Tensor, channels: int) -> torch.Tensor:
    """The closed form: the diagonals of two inverses."""
    s = noisy(cov, channels)
    ratio = precision(s)[:channels] / precision(s[:channels, :channels])
    return 0.5 * ratio.log()


def conditional_one_by_one(cov: torch.Tensor, channels: int, some: int) -> torch.Tensor:
    """I(X; Y | X_-i), log-determinants without i for the first channels, as a batch."""
    s = noisy(cov, channels)
    rests = torch.tensor([[j for j in range(len(cov)) if j != i] for i in range(some)])
    given = rests[:, : channels - 1]
    without = logdet(s[given[:, :, None], given[:, None, :]])
    joint_without = logdet(s[rests[:, :, None], rests[:, None, :]])
    whole = logdet(s[:channels, :channels]) - logdet(s)
    return 0.5 * (whole - without + joint_without)


def conditional_contest(channels: int, outputs: int) -> Contest:
    cov, x, y = layer(channels, outputs)
    expected = conditional_by_inverses(cov, channels)
    some = min(channels, 65536 // channels)  # all 64 of 64, 64 of 1024
    entrants: dict[str, Any] = {
        OURS: lambda: ops.conditional_mi(cov, x, y, noise_variance=NOISE),
        INVERSES: lambda: conditional_by_inverses(cov, channels),
        ONE_BY_ONE: Part(
            lambda: conditional_one_by_one(cov, channels, some), channels / some, expected[:some]
        ),
    }
    return Contest(entrants, expected, 1e-9)


def marginal_contest(channels: int, outputs: int) -> Contest:
    cov, x, y = layer(channels, outputs)

    def closed_form() -> torch.Tensor:
        s = noisy(cov, channels)
        factor = torch.linalg.cholesky(s[channels:, channels:])
        z = torch.linalg.solve_triangular(factor, s[channels:, :channels], upper=False)
        return -0.5 * torch.log1p(-z.square().sum(0) / s.diagonal()[:channels])

    entrants: dict[str, Any] = {
        OURS: lambda: ops.marginal_mi(cov, x, y, noise_variance=NOISE),
        "torch solve_triangular": closed_form,
    }
    return Contest(entrants, closed_form(), 1e-9)


def layers_contest() -> Contest:
    covs = torch.stack([layer(24, 24)[0] for _ in range(64)])
    x, y = list(range(24)), list(range(24, 48))

    def by_logdets() -> torch.Tensor:
        s = torch.stack([noisy(cov, 24) for cov in covs])
        return 0.5 * (logdet(s[:, :24, :24]) + logdet(s[:, 24:, 24:]) - logdet(s))

    entrants: dict[str, Any] = {
        OURS: lambda: ops.gaussian_mi(covs, x, y, noise_variance=NOISE),
        "torch log-determinants": by_logdets,
    }
    return Contest(entrants, reference.gaussian_mi(covs, x, y, noise_variance=NOISE).nats, 1e-9)


def pairwise_contest() -> Contest:
    cov, x, y = layer(256, 256)

    def closed_form() -> torch.Tensor:
        s = noisy(cov, 256)
        variances = s.diagonal()
        rho2 = s[:256, 256:].square() / (variances[:256, None] * variances[256:])
        return -0.5 * torch.log1p(-rho2).sum(1)

    entrants: dict[str, Any] = {
        OURS: lambda: ops.pairwise_mi(cov, x, y, noise_variance=NOISE),
        "torch": closed_form,
    }
    return Contest(entrants, closed_form(), 1e-11)


def triangle(n: float) -> float:
    """Bytes of a lower triangle of float64."""
    return 4 * n * (n + 1)


CASES = [
    Case(
        f"conditional_mi of {channels} channels, {outputs} outputs, float64",
        (OURS, INVERSES, ONE_BY_ONE),
        partial(conditional_contest, channels, outputs),
        goals={INVERSES: 2.5, ONE_BY_ONE: 100},
        flops=2 * (channels + outputs) ** 3 / 3,
        bytes=triangle(channels + outputs),
        dtype=torch.float64,
    )
    for channels, outputs in [(64, 10), (256, 10), (1024, 10)]
]
CASES += [
    Case(
        f"marginal_mi of {channels} channels, {outputs} outputs, float64",
        (OURS, "torch solve_triangular"),
        partial(marginal_contest, channels, outputs),
        flops=outputs**3 / 3 + outputs**2 * channels,
        bytes=triangle(channels + outputs),
        dtype=torch.float64,
    )
    for channels, outputs in [(64, 64), (256, 256), (1024, 512)]
]
CASES += [
    Case(
        "gaussian_mi of 64 layers, 24 channels, 24 outputs, float64",
        (OURS, "torch log-determinants"),
        layers_contest,
        bytes=64 * triangle(48),
    ),
    Case(
        "pairwise_mi of 256 channels, 256 outputs, float64",
        (OURS, "torch"),
        pairwise_contest,
        bytes=8 * 256 * 256,
    ),
]

test_contests = tests_of(CASES)
