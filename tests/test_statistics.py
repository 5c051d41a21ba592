"""Streamed moments of layer inputs and outputs against what the whole data give at once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from infoslice.perturbation import Inputs
from infoslice.statistics import collect, measure, supported, variables, weight_matrix

CASES = {
    "linear": (nn.Linear(5, 4), (7, 5)),
    "linear on tokens": (nn.Linear(5, 4), (6, 3, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), (6, 3, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1), (6, 3, 7, 6)),
    "conv2d 1x1 stride 2": (nn.Conv2d(3, 4, 1, stride=2), (6, 3, 7, 6)),
    "conv2d odd": (nn.Conv2d(2, 4, (3, 2), (2, 1), (0, 1), dilation=(1, 2)), (6, 2, 9, 8)),
    "conv2d same": (nn.Conv2d(2, 4, (4, 2), padding="same"), (6, 2, 9, 8)),
    "conv2d reflect": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (6, 2, 9, 8)),
    "conv3d": (nn.Conv3d(2, 3, (3, 2, 2), (1, 2, 1), (1, 0, 1), (1, 2, 1)), (3, 2, 5, 6, 4)),
}


def _reference(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Receptive fields [n, d] and outputs [n, m], float64, by brute force: tap by tap."""
    layer = layer.double()
    x = x.double()
    y = layer(x)
    d = variables(layer)
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, d), y.reshape(-1, y.shape[-1])
    probe = torch.zeros_like(layer.weight[:1]).expand(d, -1, *layer.kernel_size).clone()
    probe.view(d, d)[range(d), range(d)] = 1
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
    edges = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    taps = conv(F.pad(x, edges, mode=mode), probe, None, layer.stride, 0, layer.dilation)
    return taps.movedim(1, -1).reshape(-1, d), y.movedim(1, -1).reshape(-1, y.shape[1])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
def test_streamed_moments_equal_the_covariance_of_all_samples(case, assert_close):
    layer, shape = CASES[case]
    x = torch.randn(shape, dtype=torch.float64) + 3
    model = nn.Sequential(layer.double()).train()
    found = collect(model, Inputs.of(x), ["0"], batch_size=2, outputs={"0": nn.Identity()})["0"]
    patches, y = _reference(layer, x)
    together = np.cov(torch.cat([patches, y], 1).detach().numpy().T, ddof=0)
    expected = torch.from_numpy(together)
    d = patches.shape[1]
    assert found.count == len(patches)
    assert_close(found.mean_x, patches.mean(0), factor=10)
    assert_close(found.mean_y, y.mean(0), factor=10)
    assert_close(found.covariance_x, expected[:d, :d], factor=10)
    assert_close(found.covariance_xy, expected[:d, d:], factor=10)
    assert_close(found.covariance_y, expected[d:, d:], factor=10)
    # the layer as a matrix gives the same outputs
    w = weight_matrix(layer)
    assert_close(found.covariance_xy, expected[:d, :d] @ w.T, factor=100)
    assert model.training


def test_merge_is_exact_whatever_the_split(assert_close):
    layer, x = nn.Linear(3, 2).double(), torch.randn(17, 3, dtype=torch.float64) * 5 + 100
    whole = measure(layer, x, layer(x))
    parts = measure(layer, x[:1], layer(x[:1]))
    for piece in x[1:].split([3, 9, 4]):
        parts = parts.merge(measure(layer, piece, layer(piece)))
    assert parts.count == whole.count == 17
    assert_close(parts.mean_x, whole.mean_x)
    assert_close(parts.covariance_x, whole.covariance_x, factor=100)
    assert_close(parts.covariance_xy, whole.covariance_xy, factor=100)


def test_calls_of_one_layer_are_pooled_and_transposed_convolutions_read_positions(assert_close):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.up = nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 3, 2, 2)

        def forward(self, x):
            return self.up(self.same(self.same(x)))

    model, x = Twice().double(), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    found = collect(model, Inputs.of(x), ["same", "up"], batch_size=3)
    once = model.same(x)
    both = torch.cat([x, once]).movedim(1, -1).reshape(-1, 2).detach()
    assert_close(found["same"].covariance_x, torch.cov(both.T, correction=0), factor=10)
    read = model.same(once).movedim(1, -1).reshape(-1, 2).detach()
    assert_close(found["up"].covariance_x, torch.cov(read.T, correction=0), factor=10)
    assert weight_matrix(model.up).shape == (12, 2)
    assert variables(model.up) == 2
    with pytest.raises(TypeError, match="transposed"):
        measure(model.up, x, x)


def test_refusals():
    assert not supported(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(TypeError, match="got LayerNorm"):
        measure(nn.LayerNorm(3), torch.zeros(2, 3))
    model = nn.Sequential(nn.Linear(3, 2))
    model.add_module("unused", nn.Linear(3, 2))
    model.forward = model[0].forward
    with pytest.raises(ValueError, match="unused"):
        collect(model, Inputs.of(torch.randn(4, 3)), ["0", "unused"])
    with pytest.raises(ValueError, match=r"finite|NaN"):
        collect(nn.Sequential(nn.Linear(3, 2)), Inputs.of(torch.full((4, 3), torch.nan)), ["0"])


@pytest.mark.parametrize("case", ["linear on tokens", "conv2d"])
def test_a_regression_needs_no_covariance_of_the_output(case, assert_close):
    layer, shape = CASES[case]
    x = torch.randn(shape, dtype=torch.float64)
    y = layer.double()(x).detach()
    whole = measure(layer, x, y)
    halves = [measure(layer, x[i], y[i], output_covariance=False) for i in (slice(2), slice(2, 9))]
    found = halves[0].merge(halves[1])
    assert_close(found.covariance_xy, whole.covariance_xy, factor=10)
    assert_close(found.mean_y, whole.mean_y, factor=10)
    assert found.scatter_y.numel() == 0
