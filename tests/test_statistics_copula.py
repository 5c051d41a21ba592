"""Streamed ranks and normal scores against those of SciPy on all the data."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import nn

from infoslice import ops
from infoslice.perturbation import Inputs
from infoslice.statistics import Accumulator, Copula, QuantileSketch, collect


def _ranks(values):
    return torch.from_numpy(rankdata(values.numpy(), axis=1))


def _scores(values):
    """[C, n] by SciPy."""
    return torch.from_numpy(ndtri(rankdata(values.numpy(), axis=1) / (values.shape[1] + 1)))


def _distributions(n):
    normal = torch.randn(3, n)
    return torch.stack([
        normal[0], 1e3 + 1e-3 * normal[1], normal[2].exp(), normal[0].relu(),
        (2 * normal[1]).round(), normal[2].clamp(-0.5, 0.7), torch.full((n,), 2.0),
    ])  # fmt: skip


def test_few_values_have_exact_ranks_ties_included():
    values = _distributions(500)
    sketch = QuantileSketch(7, size=500)
    for piece in values.split([1, 300, 199], 1):
        sketch.add(piece)
    assert torch.equal(sketch.ranks(values), _ranks(values))
    _, counts = np.unique(values[4].numpy(), return_counts=True)
    assert sketch.largest_ties()[4] == counts.max() / 500
    assert sketch.largest_ties()[6] == 1
    # between two values, and beyond all
    lone = QuantileSketch(1)
    lone.add(torch.tensor([[1.0, 2.0, 4.0]]))
    assert lone.ranks(torch.tensor([[0.0, 3.0, 9.0]])).tolist() == [[0.5, 2.5, 3.5]]


@pytest.mark.parametrize("halves", [False, True])
def test_many_values_have_ranks_within_the_stated_error_and_memory(halves):
    n, size = 60_000, 256
    values = _distributions(n)
    if halves:
        sketches = [QuantileSketch(7, size=size, seed=s) for s in (0, 1)]
        for sketch, half in zip(sketches, values.split(n // 2, 1), strict=True):
            for piece in half.split(700, 1):
                sketch.add(piece)
        sketch = sketches[0].merge(sketches[1])
    else:
        sketch = QuantileSketch(7, size=size)
        for piece in values.split(700, 1):
            sketch.add(piece)
    errors = (sketch.ranks(values) - _ranks(values)).abs()
    levels = 1 + math.log2(n / size)
    assert errors.max() < n / size * levels
    assert errors[:6].square().mean(1).sqrt().max() < 1.5 * n / size
    assert errors[3][values[3] == 0].max() == 0  # exact zeros, half of all
    assert sum(level.shape[1] for level in sketch._levels) <= size * (1 + levels)
    assert sketch.count == n
    assert abs(float(sketch.largest_ties()[3]) - float((values[3] == 0).double().mean())) < 1e-12


def test_scores_of_layers_equal_those_of_all_data(assert_close):
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(2), nn.Linear(12, 5).double())
    x = torch.randn(10, 3, 4, 3, dtype=torch.float64).exp()
    found = collect(model, Inputs.of(x), ["0", "3"], batch_size=4, transform="copula")
    # a convolution: one map per channel, padding and all
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    z = _scores(padded.movedim(1, 0).flatten(1)).view(3, 10, 6, 5).movedim(0, 1)
    rows = nn.functional.unfold(z, 3).mT.reshape(-1, 27)
    y = conv(x).detach()
    z_y = _scores(y.movedim(1, 0).flatten(1)).T
    both = torch.cov(torch.cat([rows, z_y], 1).T, correction=0)
    assert_close(found["0"].covariance_x, both[:27, :27], factor=100)
    assert_close(found["0"].covariance_xy, both[:27, 27:], factor=100)
    assert_close(found["0"].covariance_y, both[27:, 27:], factor=100)
    # a linear layer behind rectification: exact zeros; the output as the activation gives it
    hidden = y.relu().flatten(2).reshape(-1, 12)
    z = _scores(hidden.T)
    assert_close(found["3"].covariance_x, torch.cov(z, correction=0), factor=100)
    act = {"3": torch.tanh}
    after = collect(model, Inputs.of(x), ["3"], transform="copula", outputs=act)["3"]
    assert_close(after.covariance_y, found["3"].covariance_y, factor=1e4)  # tanh is monotone


def _information(moments):
    top = torch.cat([moments.covariance_x, moments.covariance_xy], 1)
    joint = torch.cat([top, torch.cat([moments.covariance_xy.T, moments.covariance_y], 1)])
    d = len(moments.mean_x)
    return float(ops.gaussian_mi(joint, range(d), range(d, len(joint))).nats)


class Channel(nn.Module):
    """A layer that reads the first column and answers with the second."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, pairs):
        return self.layer(pairs[:, :1])


def _through(x, y, **options):
    """Information between x and y [n] as a layer's input and output."""
    model, pairs = Channel().double(), torch.stack([x, y], 1)
    batches = iter([*pairs.split(5000), *pairs.split(5000)])
    outputs = {"layer": lambda _: next(batches)[:, 1:]}
    found = collect(model, Inputs.of(pairs), ["layer"], batch_size=5000, outputs=outputs, **options)
    return _information(found["layer"])


def test_information_is_invariant_to_monotone_maps_and_a_lower_bound():
    n, rho = 20_000, 0.8
    x = torch.randn(n, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dtype=torch.float64)
    truth = -0.5 * math.log(1 - rho**2)
    plain = _through(x, y, transform="copula")
    bent = _through((3 * x).exp(), y.pow(3), transform="copula")
    assert abs(plain - truth) < 0.02
    assert abs(bent - plain) < 1e-4  # up to the sketch: the sign of x is known to it
    few = [_through(*pair, transform="copula") for pair in (
        (x[:1000], y[:1000]), ((3 * x[:1000]).exp(), y[:1000].pow(3))
    )]  # fmt: skip
    assert abs(few[0] - few[1]) < 1e-9
    assert abs(_through((3 * x).exp(), y.pow(3)) - truth) > 0.2  # without: far off
    # Y = X + U of uniforms on [0, 1] and [0, a]: I = a / 2 - log a, in closed form
    for a in (1.0, 0.5, 0.1):
        u = torch.rand(n, dtype=torch.float64)
        noisy = u + a * torch.rand(n, dtype=torch.float64)
        bound = _through(u, noisy, transform="copula")
        assert 0.5 * (a / 2 - math.log(a)) < bound < a / 2 - math.log(a)


def test_masks_leave_padding_out(assert_close):
    model, x = nn.Sequential(nn.Linear(3, 2).double()), torch.randn(6, 5, 3, dtype=torch.float64)
    mask = torch.rand(6, 5) > 0.4
    found = collect(model, Inputs.of(x, mask.float()), ["0"], transform="copula")["0"]
    assert_close(found.covariance_x, torch.cov(_scores(x[mask].T), correction=0), factor=100)
    with pytest.raises(ValueError, match="0 or 1"):
        collect(model, Inputs.of(x, torch.rand(6, 5)), ["0"], transform="copula")


def test_channels_that_tie_too_often_are_refused_and_constant_ones_carry_nothing():
    x = torch.randn(400, 3)
    x[:, 1] = 0
    x[3, 1] = 1.0  # one value in 400
    x[:, 2] = 5
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0\.9975 for channel 1 .* read by layer '0'"):
        collect(model, Inputs.of(x), ["0"], transform="copula")
    with Copula(model, ["0"], max_ties=1) as copula:
        model(x)
    with Accumulator(model, ["0"], transforms=copula.inputs, outputs=copula.outputs) as found:
        model(x)
    assert copula.ties()["0"].tolist()[1:] == [399 / 400, 1]
    variance = found.moments["0"].variance_x
    assert variance[2] == 0
    assert 0 < variance[1] < 0.1 < variance[0]


def test_refusals():
    with pytest.raises(ValueError, match="finite"):
        QuantileSketch(1).add(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="size"):
        QuantileSketch(1, size=1)
    model, x = nn.Sequential(nn.ConvTranspose2d(2, 2, 2)), torch.randn(2, 2, 3, 3)
    with pytest.raises(TypeError, match="transposed"):
        collect(model, Inputs.of(x), ["0"], transform="copula")
    with pytest.raises(ValueError, match="'rank'"):
        collect(model, Inputs.of(x), ["0"], transform="rank")
