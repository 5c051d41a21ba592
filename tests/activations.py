"""Groups under known inputs, for tests of criteria that read activations."""

import numpy as np
import torch
from torch import nn

import infoslice
from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.perturbation import Inputs
from infoslice.statistics import collect


class Two(nn.Module):
    """Group a is read by two layers; one of them reads group b beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3)
        self.first, self.both = nn.Conv2d(3, 5, 3), nn.Conv2d(7, 6, 2)

    def forward(self, x):
        a, b = self.a(x).sigmoid(), self.b(x).tanh()
        return self.first(a).mean() + self.both(torch.cat([b, a], 1))


def two(seed=0):
    """The group ``a`` of a :class:`Two` under noise."""
    torch.manual_seed(seed)
    model, x = Two().double(), torch.randn(8, 2, 9, 9, dtype=torch.float64)
    return model, statistics_of(model, x, "a")


def mlp(width=6, outputs=5, samples=300, seed=0):
    """The hidden group of a small network under noise; its means are not 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Sigmoid(), nn.Linear(width, outputs)).double()
    x = torch.randn(samples, 4, dtype=torch.float64)
    return model, statistics_of(model, x, "0")


def statistics_of(model, x, name):
    group = infoslice.trace(model, x[:1]).group(name)
    found = collect(model, Inputs.of(x), [*group.producers, *group.consumers])
    return GroupStatistics(group, model, lambda: found)


def linear_statistics(covariance, weight, *, mean=None, width=1, count=10_000):
    """Statistics of one linear layer that reads ``covariance``, ``width`` variables a channel."""
    covariance, weight = (torch.as_tensor(t, dtype=torch.float64) for t in (covariance, weight))
    d = len(covariance)
    mean = torch.zeros(d, dtype=torch.float64) if mean is None else torch.as_tensor(mean).double()
    nothing = torch.zeros(0, dtype=torch.float64)
    moments = infoslice.Moments(
        count, mean, nothing, covariance * count, covariance.new_empty(d, 0), nothing[:, None]
    )
    layer = LayerStatistics(
        "reader", lambda: moments, lambda: moments, weight, torch.arange(d).view(-1, width)
    )
    return GivenStatistics([layer])


class GivenStatistics:
    """As :class:`infoslice.GroupStatistics`, of layers that are given."""

    def __init__(self, consumers):
        self.name, self.consumers, self.producers = "given", tuple(consumers), ()
        self.channels = len(consumers[0].variables)


def arrays(layer):
    """Mean, covariance, weights and the variables of each channel, in NumPy."""
    return (
        layer.moments.mean_x.numpy(),
        layer.moments.covariance_x.numpy(),
        layer.weight.numpy(),
        layer.variables.numpy(),
    )


def least_squares(s, w, kept):
    """``min_V E|W X - V X_kept|^2`` for second moments ``s``, by the normal equations."""
    kept = list(kept)
    v = np.linalg.solve(s[np.ix_(kept, kept)], s[kept] @ w.T) if kept else np.zeros((0, len(w)))
    return np.trace(w @ s @ w.T) - np.sum((s[kept] @ w.T) * v)
