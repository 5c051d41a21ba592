"""Moments without samples, against samples, quadrature and the arc-cosine kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import infoslice
from infoslice.perturbation import Inputs
from infoslice.perturbation.propagation import propagate
from infoslice.perturbation.rectified import rectified, rectified_covariance
from infoslice.statistics import collect


def _double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_zero_means_give_the_arc_cosine_kernel():
    rho = _double([1.0, 0.3, -0.7], [0.3, 1.0, 0.999], [-0.7, 0.999, 1.0])
    scale = _double(1.0, 0.5, 3.0)
    zero = torch.zeros(3, dtype=torch.float64)
    variance = scale.square()
    found = rectified_covariance((zero, zero), (variance,) * 2, rho * scale[:, None] * scale)
    kernel = (rho * torch.acos(-rho) + (1 - rho.square()).clamp_min(0).sqrt() - 1) / (2 * math.pi)
    torch.testing.assert_close(found, kernel * scale[:, None] * scale, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rho", [-0.999, -0.6, 0.05, 0.6, 0.95, 0.9999])
def test_other_means_against_quadrature(rho):
    """E relu(x) relu(y) by integrating over x, y given x in closed form."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        m, n = rng.normal(0, 1.5, 2)
        s, t = np.exp(rng.normal(0, 0.5, 2))
        z = torch.linspace(-m / s, 12, 400001, dtype=torch.float64).clamp_min(-12)
        inner, spread = n + t * rho * z, t * math.sqrt(1 - rho**2)
        a = inner / spread
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        given = inner * torch.special.ndtr(a)
        given += spread * torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
        product = torch.trapezoid((m + s * z) * given * density, z)
        first, variance, above = rectified(_double(m, n), _double(s * s, t * t))
        found = rectified_covariance(
            (_double(m), _double(n)), (_double(s * s), _double(t * t)), _double([rho * s * t])
        )
        assert abs(float(found) - float(product - first[0] * first[1])) < 2e-6 * s * t
        alone = rectified_covariance((_double(m),) * 2, (_double(s * s),) * 2, _double([s * s]))
        assert abs(float(alone) - float(variance[0])) < 1e-6 * s * s
        assert float(above[0]) == pytest.approx(0.5 * math.erfc(-m / s / math.sqrt(2)), abs=1e-12)


def test_constants_stay_constants():
    mean, variance, above = rectified(_double(2.0, -2.0, 0.0), _double(0.0, 0.0, 0.0))
    assert mean.tolist() == [2, 0, 0]
    assert variance.tolist() == [0, 0, 0]
    assert above.tolist() == [1, 0, 0]
    none = rectified_covariance((_double(2.0, 1),) * 2, (_double(0.0, 1),) * 2, torch.eye(2))
    assert none[0].tolist() == [0, 0]


def _recorded(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a fresh network."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.05, 0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model.eval()


def _distances(model, x, moments, batch_size=8192):
    """Distance of means and covariances from those of samples, each relative, the larger."""
    sampled = collect(model, Inputs.of(x), list(moments), batch_size=batch_size)
    found = {}
    for name, m in moments.items():
        cov = sampled[name].covariance_x
        mean = (m.mean_x - sampled[name].mean_x).norm() / cov.trace().sqrt()
        found[name] = max(float(mean), float((m.covariance_x - cov).norm() / cov.norm()))
    return found


def test_mlp_exact_to_the_second_relu_and_close_behind_it():
    torch.manual_seed(0)
    model = _recorded(nn.Sequential(
        nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 200), nn.ReLU(),
        nn.Dropout(), nn.Linear(200, 20), nn.ReLU(inplace=True), nn.Linear(20, 3),
    ))  # fmt: skip
    mean, root = torch.randn(12), torch.randn(12, 12) / 3
    graph = infoslice.trace(model, torch.zeros(1, 12))
    moments = propagate(graph, model, mean, root @ root.T)
    assert list(moments) == ["0", "3", "6", "8"]
    generator = torch.Generator().manual_seed(1)
    x = mean + torch.randn(200_000, 12, generator=generator) @ root.T
    distances = _distances(model, x, moments)
    assert distances["0"] < 0.01  # 200,000 samples
    assert distances["3"] < 0.01
    assert distances["6"] < 0.25
    assert distances["8"] < 0.25  # what is no longer Gaussian


class Residual(nn.Module):
    """Two sides that depend on each other, strides, groups, dilation, borders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.inner, self.norm = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.shortcut = nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.Conv2d(8, 16, 1, 2)
        self.wide = nn.Conv2d(16, 8, 3, padding=2, dilation=2, padding_mode="circular")
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.norm(self.inner(x.relu()))
        x = self.grouped(x) + self.shortcut(x)
        return self.head(F.avg_pool2d(self.wide(x) * self.scale, 2).flatten(1))


def test_residual_cnn_with_one_relu_is_exact():
    torch.manual_seed(0)
    model = _recorded(Residual())
    graph = infoslice.trace(model, torch.zeros(1, 3, 16, 16))
    moments = propagate(graph, model)
    assert set(moments) == {"stem", "inner", "shortcut", "wide", "head"}  # groups: not measured
    x = torch.randn(16_000, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    distances = _distances(model, x, moments, batch_size=500)
    assert max(distances.values()) < 0.04, distances


def test_anchored_batch_norms_read_what_they_recorded():
    torch.manual_seed(0)
    model = _recorded(
        nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Flatten())
    )
    graph = infoslice.trace(model, torch.zeros(1, 2, 6, 6))
    norm = model[1]
    read = propagate(graph, model, anchored=True)["2"]
    gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    variance = gain.square() * norm.running_var
    torch.testing.assert_close(read.mean_x, norm.bias.detach().double())
    torch.testing.assert_close(read.covariance_x.diagonal(), variance.double())
    plain = propagate(graph, model)["2"].covariance_x
    scale = (read.covariance_x.diagonal() / plain.diagonal()).sqrt()
    torch.testing.assert_close(read.covariance_x, plain * scale[:, None] * scale)


def test_a_layer_called_twice_is_pooled():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    moments = propagate(infoslice.trace(model, torch.zeros(1, 3)), model)["layer"]
    weight, bias = model.layer.weight.detach().double(), model.layer.bias.detach().double()
    second = weight @ weight.T + torch.outer(bias, bias)
    expected = (torch.eye(3) + second) / 2 - torch.outer(bias, bias) / 4
    torch.testing.assert_close(moments.covariance_x, expected)


@pytest.mark.parametrize(
    ("model", "shape", "options", "text"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), (1, 8, 8), {}, "max_pool2d .*'1'"),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU()), (4,), {}, "gelu"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 9)), (4,), {"max_variables": 8}, "least 9"),
        (nn.Linear(4, 4), (4,), {"mean": torch.zeros(3)}, "mean: expected"),
        (nn.Linear(4, 4), (4,), {"covariance": torch.full((4, 4), math.nan)}, "covariance"),
    ],
)
def test_what_is_not_covered_is_refused(model, shape, options, text):
    graph = infoslice.trace(model, torch.zeros(1, *shape))
    with pytest.raises(ValueError, match=text):
        propagate(graph, model, **options)
