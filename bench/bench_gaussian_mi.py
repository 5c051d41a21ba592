"""Information of all channels at once against closed forms and log-determinants one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoslice import ops, reference

NOISE = 0.1


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


def conditional_one_by_one(cov: torch.Tensor, channels: int) -> torch.Tensor:
    """I(X; Y) - I(X_-i; Y), a pair of log-determinants for each i, as a batch."""
    s = noisy(cov, channels)
    rests = torch.tensor([[j for j in range(len(cov)) if j != i] for i in range(channels)])
    given = rests[:, : channels - 1]
    without = logdet(s[given[:, :, None], given[:, None, :]])
    joint_without = logdet(s[rests[:, :, None], rests[:, None, :]])
    whole = logdet(s[:channels, :channels]) - logdet(s)
    return 0.5 * (whole - without + joint_without)


def conditional_by_numpy(cov: np.ndarray, channels: int) -> np.ndarray:
    s = cov + np.diag([0.0] * channels + [NOISE] * (len(cov) - channels))
    out = np.empty(channels)
    whole = np.linalg.slogdet(s[:channels, :channels])[1] - np.linalg.slogdet(s)[1]
    for i in range(channels):
        rest = np.delete(np.arange(len(s)), i)
        given = rest[: channels - 1]
        out[i] = whole - np.linalg.slogdet(s[np.ix_(given, given)])[1]
        out[i] += np.linalg.slogdet(s[np.ix_(rest, rest)])[1]
    return out / 2


SIZES = [(64, 10), (256, 10), (256, 256), (1024, 10)]
CONDITIONAL = [
    (*size, name) for size in SIZES for name in ("infoslice", "two torch.cholesky_inverse")
]
# Seconds to minutes a call for more channels.
CONDITIONAL += [(64, 10, "torch logdets one by one"), (64, 10, "NumPy one by one")]


@pytest.mark.parametrize(("channels", "outputs", "name"), CONDITIONAL)
def test_conditional_mi(race, channels, outputs, name):
    cov, x, y = layer(channels, outputs)
    functions = {
        "infoslice": lambda: ops.conditional_mi(cov, x, y, noise_variance=NOISE),
        "two torch.cholesky_inverse": lambda: conditional_by_inverses(cov, channels),
        "torch logdets one by one": lambda: conditional_one_by_one(cov, channels),
        "NumPy one by one": lambda: conditional_by_numpy(cov.numpy(), channels),
    }
    race(
        f"conditional_mi of {channels} channels, {outputs} outputs, float64",
        name,
        functions[name],
        conditional_by_inverses(cov, channels),
        bound=1e-9,
        flops=2 * (channels + outputs) ** 3 / 3,
    )


@pytest.mark.parametrize(("channels", "outputs"), [(64, 64), (256, 256), (1024, 512)])
@pytest.mark.parametrize("name", ["infoslice", "torch solve_triangular"])
def test_marginal_mi(race, channels, outputs, name):
    cov, x, y = layer(channels, outputs)

    def closed_form() -> torch.Tensor:
        s = noisy(cov, channels)
        factor = torch.linalg.cholesky(s[channels:, channels:])
        z = torch.linalg.solve_triangular(factor, s[channels:, :channels], upper=False)
        return -0.5 * torch.log1p(-z.square().sum(0) / s.diagonal()[:channels])

    functions = {
        "infoslice": lambda: ops.marginal_mi(cov, x, y, noise_variance=NOISE),
        "torch solve_triangular": closed_form,
    }
    race(
        f"marginal_mi of {channels} channels, {outputs} outputs, float64",
        name,
        functions[name],
        closed_form(),
        bound=1e-9,
        flops=outputs**3 / 3 + outputs**2 * channels,
    )


@pytest.mark.parametrize("name", ["infoslice", "torch logdets"])
def test_gaussian_mi_of_many_layers(race, name):
    covs = torch.stack([layer(24, 24)[0] for _ in range(64)])
    x, y = list(range(24)), list(range(24, 48))

    def by_logdets() -> torch.Tensor:
        s = torch.stack([noisy(cov, 24) for cov in covs])
        return 0.5 * (logdet(s[:, :24, :24]) + logdet(s[:, 24:, 24:]) - logdet(s))

    functions = {
        "infoslice": lambda: ops.gaussian_mi(covs, x, y, noise_variance=NOISE),
        "torch logdets": by_logdets,
    }
    race(
        "gaussian_mi of 64 layers, 24 channels, 24 outputs, float64",
        name,
        functions[name],
        reference.gaussian_mi(covs, x, y, noise_variance=NOISE).nats,
        bound=1e-9,
    )


@pytest.mark.parametrize("name", ["infoslice", "torch"])
def test_pairwise_mi(race, name):
    cov, x, y = layer(256, 256)

    def closed_form() -> torch.Tensor:
        s = noisy(cov, 256)
        variances = s.diagonal()
        rho2 = s[:256, 256:].square() / (variances[:256, None] * variances[256:])
        return -0.5 * torch.log1p(-rho2).sum(1)

    functions = {
        "infoslice": lambda: ops.pairwise_mi(cov, x, y, noise_variance=NOISE),
        "torch": closed_form,
    }
    race(
        "pairwise_mi of 256 channels, 256 outputs, float64",
        name,
        functions[name],
        closed_form(),
        bound=1e-11,
    )
