"""covariance against torch.cov, numpy.cov and scikit-learn on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoslice import ops, reference

if TYPE_CHECKING:
    from collections.abc import Callable

# shape, channel dimension, dtype
CASES = {
    "covariance [16000, 64] float32": ((16000, 64), 1, torch.float32),
    "covariance [100000, 64] bfloat16": ((100000, 64), 1, torch.bfloat16),
    "covariance [16000, 256] float32": ((16000, 256), 1, torch.float32),
    "covariance [16000, 256] float64": ((16000, 256), 1, torch.float64),
    "covariance [4000, 1024] float32": ((4000, 1024), 1, torch.float32),
    "covariance [32, 64, 56, 56] float32": ((32, 64, 56, 56), 1, torch.float32),
    "covariance [32, 64, 56, 56] bfloat16": ((32, 64, 56, 56), 1, torch.bfloat16),
    "covariance [64, 256, 14, 14] float32": ((64, 256, 14, 14), 1, torch.float32),
    "covariance [64, 1024, 7, 7] bfloat16": ((64, 1024, 7, 7), 1, torch.bfloat16),
}


def as_rows(x: torch.Tensor, channel_dim: int) -> torch.Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    return x.movedim(channel_dim, 0).reshape(x.shape[channel_dim], -1)


def entrants(x: torch.Tensor, channel_dim: int) -> dict[str, Callable[[], Any]]:
    from sklearn.covariance import empirical_covariance

    n = x.numel() // x.shape[channel_dim]
    scale = n / (n - 1)
    return {
        "infoslice": lambda: ops.covariance(x, channel_dim=channel_dim),
        "torch.cov": lambda: torch.cov(as_rows(x, channel_dim)),
        "numpy.cov": lambda: np.cov(as_rows(x, channel_dim).numpy()),
        "sklearn.empirical_covariance": lambda: (
            empirical_covariance(as_rows(x, channel_dim).T.numpy()) * scale
        ),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name", ["infoslice", "torch.cov", "numpy.cov", "sklearn.empirical_covariance"]
)
def test_covariance(race, case, name):
    shape, channel_dim, dtype = CASES[case]
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    channels = shape[channel_dim]
    race(
        case,
        name,
        entrants(x, channel_dim)[name],
        reference.covariance(x, channel_dim=channel_dim).covariance,
        bound=2e-6 if dtype != torch.float64 else 1e-12,
        flops=x.numel() * (channels + 1),
    )


@pytest.mark.parametrize("name", ["infoslice", "F.unfold and torch.cov"])
def test_patch_covariance(race, name):
    x = torch.randn(16, 32, 28, 28)
    functions = {
        "infoslice": lambda: ops.patch_covariance(x, 3, padding=1),
        "F.unfold and torch.cov": lambda: torch.cov(
            F.unfold(x, 3, padding=1).movedim(1, 0).reshape(288, -1)
        ),
    }
    race(
        "patch_covariance [16, 32, 28, 28] 3x3 float32",
        name,
        functions[name],
        reference.patch_covariance(x, 3, padding=1).covariance,
        bound=2e-6,
        flops=16 * 28 * 28 * 288 * 289,
    )


@pytest.mark.parametrize("name", ["infoslice", "torch, centred"])
def test_cross_covariance(race, name):
    x, y = torch.randn(16000, 256), torch.randn(16000, 64)
    functions = {
        "infoslice": lambda: ops.cross_covariance(x, y),
        "torch, centred": lambda: (x - x.mean(0)).T @ (y - y.mean(0)) / (len(x) - 1),
    }
    race(
        "cross_covariance [16000, 256] x [16000, 64] float32",
        name,
        functions[name],
        reference.cross_covariance(x, y).covariance,
        bound=1e-3,  # independent channels: the entries themselves are of the order of 1 / sqrt(n)
        flops=2 * x.numel() * 64,
    )


@pytest.mark.parametrize(
    "name",
    ["infoslice", "bare native call", "infoslice, numpy", "infoslice, with gradient", "torch.cov"],
)
def test_overhead(race, name):
    x = torch.randn(8, 4)
    array = x.numpy()
    leaf = x.clone().requires_grad_()
    functions = {
        "infoslice": lambda: ops.covariance(x),
        "bare native call": lambda: ops._native.core.covariance(array, -1, 0, 1, None),
        "infoslice, numpy": lambda: ops.covariance(array),
        "infoslice, with gradient": lambda: ops.covariance(leaf),
        "torch.cov": lambda: torch.cov(x.T),
    }
    expected = reference.covariance(x).covariance
    with torch.set_grad_enabled(name == "infoslice, with gradient"):
        race("covariance [8, 4] float32: what a call costs", name, functions[name], expected, 2e-6)
