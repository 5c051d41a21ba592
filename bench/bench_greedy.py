"""Greedy selection and elimination against their definition and against incremental versions.

Every entrant returns what the chosen channels told (or lost) at each step; the orders are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoslice import ops

NOISE = 0.1


def layer(channels: int, outputs: int) -> torch.Tensor:
    """Joint covariance of correlated inputs and a linear map of them, without its noise."""
    samples = torch.randn(2 * channels, channels, dtype=torch.float64)
    sx = samples.T @ samples / (2 * channels)
    w = torch.randn(outputs, channels, dtype=torch.float64) / channels**0.5
    return torch.cat([torch.cat([sx, sx @ w.T], 1), torch.cat([w @ sx, w @ sx @ w.T], 1)])


def reader(channels: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Precision matrix of the inputs, the same given the noisy outputs, and W'W."""
    samples = torch.randn(2 * channels, channels, dtype=torch.float64)
    precision = torch.linalg.inv(samples.T @ samples / (2 * channels))
    w = torch.randn(outputs, channels, dtype=torch.float64) / channels**0.5
    return precision, precision + w.T @ w / NOISE, w.T @ w


def noisy(cov: torch.Tensor, channels: int) -> torch.Tensor:
    s = cov.clone()
    s.diagonal()[channels:] += NOISE
    return s


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
    from scipy.linalg import solve_triangular

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


FORWARD = [(256, 10, 32), (256, 256, 32), (1536, 384, 768)]
BACKWARD = [(256, 256, 32), (512, 512, 512), (1536, 384, 768)]


@pytest.mark.parametrize(
    ("channels", "outputs", "count", "name"),
    [(*case, name) for case in FORWARD for name in ("infoslice", "NumPy incremental")]
    + [(256, 10, 32, "torch by the definition")],
)
def test_forward_selection(race, channels, outputs, count, name):
    cov = layer(channels, outputs)
    x, y, as_numpy = range(channels), range(channels, channels + outputs), cov.numpy()
    functions = {
        "infoslice": lambda: (
            ops.forward_selection(as_numpy, x, y, count, noise_variance=NOISE).gains
        ),
        "NumPy incremental": lambda: forward_in_numpy(as_numpy, channels, count),
        "torch by the definition": lambda: forward_by_definition(cov, channels, count),
    }
    reference = torch.from_numpy(forward_in_numpy(as_numpy, channels, count))
    case = f"forward_selection of {count} out of {channels}, {outputs} outputs, float64"
    race(case, name, functions[name], reference, bound=1e-9)


@pytest.mark.parametrize(("channels", "outputs", "count"), BACKWARD)
@pytest.mark.parametrize("name", ["infoslice", "NumPy incremental", "torch downdates"])
def test_backward_elimination(race, channels, outputs, count, name):
    if name == "torch downdates" and channels > 1000:
        pytest.skip("seconds a call")
    precision, given_y, _ = reader(channels, outputs)
    arrays = precision.numpy(), given_y.numpy()
    functions = {
        "infoslice": lambda: ops.backward_elimination([precision], [given_y], count).losses,
        "NumPy incremental": lambda: backward_in_numpy(*arrays, count),
        "torch downdates": lambda: backward_by_downdates(precision, given_y, count),
    }
    reference = torch.from_numpy(backward_in_numpy(*arrays, count))
    case = f"backward_elimination of {count} out of {channels}, float64"
    race(case, name, functions[name], reference, bound=1e-9)


@pytest.mark.parametrize("name", ["infoslice", "torch by the definition"])
def test_backward_elimination_by_the_definition(race, name):
    cov = layer(128, 10)
    joint = torch.linalg.inv(noisy(cov, 128))[:128, :128].contiguous()
    precision = torch.linalg.inv(cov[:128, :128])
    functions = {
        "infoslice": lambda: ops.backward_elimination([precision], [joint], 4).losses,
        "torch by the definition": lambda: backward_by_definition(cov, 128, 4),
    }
    reference = backward_by_definition(cov, 128, 4)
    race("backward_elimination of 4 out of 128", name, functions[name], reference, bound=1e-6)


@pytest.mark.parametrize(("channels", "outputs", "count"), BACKWARD)
@pytest.mark.parametrize("name", ["infoslice", "NumPy incremental"])
def test_obs_elimination(race, channels, outputs, count, name):
    precision, _, gram = reader(channels, outputs)
    arrays = precision.numpy(), gram.numpy()
    functions = {
        "infoslice": lambda: ops.obs_elimination([precision], [gram], count).losses,
        "NumPy incremental": lambda: obs_in_numpy(*arrays, count),
    }
    reference = torch.from_numpy(obs_in_numpy(*arrays, count))
    case = f"obs_elimination of {count} out of {channels}, float64"
    race(case, name, functions[name], reference, bound=1e-9)
