"""Samples of layer inputs and outputs against averages by hand."""

import pytest
import torch
from torch import nn

from infoslice.perturbation import Inputs
from infoslice.statistics import collect_samples


class Tokens(nn.Module):
    """A convolution over pixels, then a layer on the pixels as tokens, called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 4, 3, 2, groups=1), nn.Linear(4, 4)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.twice(self.twice(tokens))


def test_samples_are_averages_over_positions_row_by_row():
    model, x = Tokens(), torch.randn(7, 3, 9, 8)
    found = collect_samples(model.train(), Inputs.of(x), ["conv", "twice"], limit=5, batch_size=2)
    conv = found["conv"]
    assert conv.x.dtype == conv.y.dtype == torch.float32
    y = model.conv(x[:5]).detach()
    torch.testing.assert_close(conv.x, x[:5].mean((2, 3)))
    torch.testing.assert_close(conv.y, y.mean((2, 3)))
    once = y.flatten(2).mean(2)  # a linear layer of the mean is the mean of the linear layer
    first, second = once[:2], model.twice(once[:2]).detach()
    twice = found["twice"]
    assert twice.x.shape == (5, 4)
    torch.testing.assert_close(twice.x[:4], torch.cat([first, second]))
    torch.testing.assert_close(twice.y[:2], second)
    assert model.training
    everything = collect_samples(model, Inputs.of(x), ["conv"], limit=100)["conv"]
    assert len(everything.x) == 7


def test_samples_refuse():
    model, x = Tokens(), torch.randn(2, 3, 5, 5)
    with pytest.raises(ValueError, match="limit"):
        collect_samples(model, Inputs.of(x), ["conv"], limit=0)
    with pytest.raises(TypeError, match="Tokens"):
        collect_samples(model, Inputs.of(x), [""], limit=2)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="unused"):
        collect_samples(model, Inputs.of(x), ["unused"], limit=2)
    with pytest.raises(ValueError, match="finite"):
        collect_samples(model, Inputs.of(x / 0), ["conv"], limit=2)
