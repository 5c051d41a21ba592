"""Greedy selection and elimination against their definition and against incremental versions.

Every entrant returns what the chosen channels told (or lost) at each step; the orders are the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular

from bench.bench_gaussian_mi import NOISE, layer, noisy, triangle
from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice import ops

NUMPY, NAIVE, DOWNDATES = "NumPy incremental", "torch by the definition", "torch downdates"


def reader(channels: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Precision matrix of the inputs, the same given the noisy outputs, and W'W."""
    samples = torch.randn(2 * channels, channels, dtype=torch.float64)
    precision = torch.linalg.inv(samples.T @ samples / (2 * channels))
    w = torch.randn(outputs, channels, dtype=torch.float64) / channels**0.5
    return precision, precision + w.T @ w / NOISE, w.T @ w


# -- by the definition: log-determinants of all candidate sets at each step -----------------------


def half_logdets(s: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
    factors = torch.linalg.cholesky(s[sets[:, :, None], sets[:, None, :]])
    return factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def forward_by_definition(cov: torch.Tensor, channels: int, count: int) -> torch.Tensor:
    s, y = noisy(cov, channels), torch.arange(channels, len(cov))
    of_y, chosen, told = half_logdets(s, y[None]), [], [torch.zeros(1, dtype=torch.float64)]
    for _ in range(count):
        left = [i for i in range(channels) if i not in chosen]
        sets = torch.tensor([[*chosen, i] for i in left])
        joint = torch.cat([sets, y.expand(len(left), -1)], 1)
        value = half_logdets(s, sets) + of_y - half_logdets(s, joint)
        told.append(value.max()[None])
        chosen.append(left[int(value.argmax())])
    return torch.cat(told).diff()


def backward_by_definition(cov: torch.Tensor, channels: int, count: int) -> torch.Tensor:
    s, y = noisy(cov, channels), torch.arange(channels, len(cov))
    of_y, kept = half_logdets(s, y[None]), list(range(channels))

    def told(sets: torch.Tensor) -> torch.Tensor:
        joint = torch.cat([sets, y.expand(len(sets), -1)], 1)
        return half_logdets(s, sets) + of_y - half_logdets(s, joint)

    values = [told(torch.tensor([kept]))]
    for _ in range(count):
        value = told(torch.tensor([[i for i in kept if i != c] for c in kept]))
        values.append(value.max()[None])
        kept.pop(int(value.argmax()))
    return -torch.cat(values).diff()


# -- incremental: a row of the Cholesky factors at each step, nothing else ------------------------


def pivoted(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The gains of two pivoted Cholesky factorisations in lock-step, by 1/2 log (A_cc / B_cc)."""
    n = len(a)
    u, w, values = np.empty((count, n)), np.empty((count, n)), np.empty(count)
    left, of_a, of_b = np.zeros(n), a.diagonal().copy(), b.diagonal().copy()
    for k in range(count):
        gain = np.log(of_a / of_b)
        gain *= 0.5
        gain += left
        c = int(gain.argmax())
        values[k] = gain[c]
        left[c] = -np.inf
        np.subtract(a[c], u[:k, c] @ u[:k], out=u[k])
        np.subtract(b[c], w[:k, c] @ w[:k], out=w[k])
        u[k] /= np.sqrt(of_a[c])
        w[k] /= np.sqrt(of_b[c])
        of_a -= u[k] * u[k]
        of_b -= w[k] * w[k]
        of_a[c] = of_b[c] = 1
    return values


def forward_in_numpy(cov: np.ndarray, channels: int, count: int) -> np.ndarray:
    sy = cov[channels:, channels:] + NOISE * np.eye(len(cov) - channels)
    z = solve_triangular(np.linalg.cholesky(sy), cov[channels:, :channels], lower=True)
    a = cov[:channels, :channels]
    return pivoted(a, a - z.T @ z, count)


def backward_in_numpy(precision: np.ndarray, given_y: np.ndarray, count: int) -> np.ndarray:
    return -pivoted(precision, given_y, count)


def obs_in_numpy(precision: np.ndarray, gram: np.ndarray, count: int) -> np.ndarray:
    n = len(precision)
    u, h, values = np.empty((count, n)), np.empty((count, n)), np.empty(count)
    left, of_p, of_g = np.zeros(n), precision.diagonal().copy(), gram.diagonal().copy()
    for k in range(count):
        loss = of_g / of_p + left
        c = int(loss.argmin())
        values[k] = loss[c]
        left[c] = np.inf
        root = np.sqrt(of_p[c])
        u[k] = (precision[c] - u[:k, c] @ u[:k]) / root
        t = (gram[c] - u[:k, c] @ h[:k] - h[:k, c] @ u[:k]) / root
        h[k] = t - 0.5 * t[c] / root * u[k]
        of_p -= u[k] * u[k]
        of_g -= 2 * u[k] * h[k]
        of_p[c] = 1
    return values


def backward_by_downdates(precision: torch.Tensor, given_y: torch.Tensor, count: int):
    """A rank-one downdate of the whole matrices at each step."""
    a, b, values = precision.clone(), given_y.clone(), []
    left = torch.zeros(len(a), dtype=torch.float64)
    for _ in range(count):
        loss = 0.5 * (b.diagonal() / a.diagonal()).log() + left
        c = int(loss.argmin())
        values.append(loss[c])
        left[c] = torch.inf
        for m in (a, b):
            row = m[c].clone()
            m.addr_(row, row, alpha=-1 / float(row[c]))
            m[c, c] = 1
    return torch.stack(values)


def numpy_steps(channels: int, done: int, steps: int) -> None:
    """So many steps of ``pivoted`` after ``done`` of them: its time is linear in the steps done."""
    n = channels
    u, w = np.ones((done + 1, n), np.float32), np.ones((done + 1, n), np.float32)
    row, left, of_a, of_b = u[-1].copy(), np.zeros(n), np.ones(n), np.ones(n)
    for c in range(steps):
        gain = np.log(of_a / of_b)
        gain *= 0.5
        gain += left
        gain.argmax()
        np.subtract(row, u[:done, c] @ u[:done], out=u[done])
        np.subtract(row, w[:done, c] @ w[:done], out=w[done])
        of_a -= u[done] * u[done]
        of_b -= w[done] * w[done]
        of_a[:] = of_b[:] = 1


# -- contests --------------------------------------------------------------------------------------


def forward_contest(channels: int, outputs: int, count: int, naive: bool) -> Contest:
    cov, x, y = layer(channels, outputs)
    array = cov.numpy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.forward_selection(cov, x, y, count, noise_variance=NOISE).gains,
        NUMPY: lambda: forward_in_numpy(array, channels, count),
    }
    if naive:
        entrants[NAIVE] = lambda: forward_by_definition(cov, channels, count)
    return Contest(entrants, torch.from_numpy(forward_in_numpy(array, channels, count)), 1e-9)


def backward_contest(channels: int, outputs: int, count: int) -> Contest:
    precision, given_y, _ = reader(channels, outputs)
    arrays = precision.numpy(), given_y.numpy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.backward_elimination([precision], [given_y], count).losses,
        NUMPY: lambda: backward_in_numpy(*arrays, count),
        DOWNDATES: lambda: backward_by_downdates(precision, given_y, count),
    }
    return Contest(entrants, torch.from_numpy(backward_in_numpy(*arrays, count)), 1e-9)


def backward_by_definition_contest(channels: int, outputs: int, count: int) -> Contest:
    cov, _, _ = layer(channels, outputs)
    joint = torch.linalg.inv(noisy(cov, channels))[:channels, :channels].contiguous()
    precision = torch.linalg.inv(cov[:channels, :channels])
    entrants: dict[str, Any] = {
        OURS: lambda: ops.backward_elimination([precision], [joint], count).losses,
        NAIVE: lambda: backward_by_definition(cov, channels, count),
    }
    return Contest(entrants, backward_by_definition(cov, channels, count), 1e-6)


def huge_contest(channels: int, count: int) -> Contest:
    """float32 matrices of a few factors; the first losses are checked."""
    samples, w = torch.randn(256, channels), torch.randn(64, channels) / channels**0.5
    precision = samples.T @ samples / 256
    precision.diagonal().add_(1)
    given_y = precision + w.T @ w / NOISE
    some, steps = 32, 8
    expected = backward_in_numpy(precision.double().numpy(), given_y.double().numpy(), some)
    entrants: dict[str, Any] = {
        OURS: lambda: ops.backward_elimination([precision], [given_y], count).losses,
        NUMPY: Part(lambda: numpy_steps(channels, count // 2, steps), count / steps, None),
    }
    return Contest(entrants, torch.from_numpy(expected), 1e-4, lambda losses: losses[:some])


def obs_contest(channels: int, outputs: int, count: int) -> Contest:
    precision, _, gram = reader(channels, outputs)
    arrays = precision.numpy(), gram.numpy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.obs_elimination([precision], [gram], count).losses,
        NUMPY: lambda: obs_in_numpy(*arrays, count),
    }
    return Contest(entrants, torch.from_numpy(obs_in_numpy(*arrays, count)), 1e-9)


def multiplications(channels: int, count: int) -> float:
    """Operations of eliminating ``count`` of the variables of one symmetric matrix."""
    return (channels**3 - (channels - count) ** 3) / 3


CASES = [
    Case(
        f"forward_selection of {count} out of {channels}, {outputs} outputs, float64",
        (OURS, NUMPY, NAIVE) if naive else (OURS, NUMPY),
        partial(forward_contest, channels, outputs, count, naive),
        goals={NUMPY: 3, NAIVE: 100} if naive else {NUMPY: 3},
        # A covariance keeps all rows: the chosen ones are only conditioned on.
        flops=2 * multiplications(channels, count) + outputs * channels * (outputs + channels),
        bytes=triangle(channels + outputs),
        dtype=torch.float64,
    )
    for channels, outputs, count, naive in [
        (256, 10, 32, True),
        (1536, 10, 768, False),
        (1536, 384, 768, False),
    ]
]
CASES += [
    Case(
        f"backward_elimination of {count} out of {channels}, float64",
        (OURS, NUMPY, DOWNDATES),
        partial(backward_contest, channels, outputs, count),
        goals={NUMPY: 3},
        flops=2 * multiplications(channels, count),
        bytes=2 * triangle(channels),
        dtype=torch.float64,
    )
    for channels, outputs, count in [(256, 256, 32), (1536, 384, 768)]
]
CASES += [
    Case(
        "backward_elimination of 4 out of 256, float64",
        (OURS, NAIVE),
        partial(backward_by_definition_contest, 256, 10, 4),
        goals={NAIVE: 100},
        flops=2 * multiplications(256, 4),
        bytes=2 * triangle(256),
        dtype=torch.float64,
    ),
    Case(
        "backward_elimination of 5504 out of 11008, float32",
        (OURS, NUMPY),
        partial(huge_contest, 11008, 5504),
        goals={NUMPY: 3},
        flops=2 * multiplications(11008, 5504),
        bytes=triangle(11008),
        dtype=torch.float64,
    ),
]
CASES += [
    Case(
        f"obs_elimination of {count} out of {channels}, float64",
        (OURS, NUMPY),
        partial(obs_contest, channels, outputs, count),
        goals={NUMPY: 3},
        flops=3 * multiplications(channels, count),
        bytes=2 * triangle(channels),
        dtype=torch.float64,
    )
    for channels, outputs, count in [(256, 256, 32), (1536, 384, 768)]
]

test_contests = tests_of(CASES)
