"""Accumulators over whole models: structures, weights, errors, resuming, against brute force."""

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas
from torch import nn
from torch.nn import functional as F

import infoslice
from infoslice.perturbation import Inputs
from infoslice.statistics import Accumulator, collect, layers, measure, variances

CASES = {
    "linear": (nn.Linear(6, 4), (7, 6)),
    "tokens": (nn.Linear(6, 4), (6, 5, 6)),
    "conv1d": (nn.Conv1d(3, 4, 3, 2, padding=1), (6, 3, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), (2, 1), (0, 1), dilation=(1, 2)), (6, 3, 7, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (5, 2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(4, 3, 2, 2), (6, 4, 3, 3)),
}


def _rows(layer, x):
    """[N, positions, d] float64, tap by tap."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    if isinstance(layer, nn.ConvTranspose2d):
        return x.flatten(2).mT
    d = layers.variables(layer)
    probe = torch.eye(d, dtype=x.dtype).view(d, *layer.weight.shape[1:])
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
    return conv(x, probe, None, layer.stride, layer.padding, layer.dilation).flatten(2).mT


@pytest.fixture(params=["whole batches", "a sample at a time"])
def _chunks(request, monkeypatch):
    if request.param != "whole batches":
        monkeypatch.setattr(layers, "_CHUNK", 1)
        monkeypatch.setattr(variances, "_CHUNK", 1)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("kind", ["none", "mask of samples", "real", "of positions"])
@pytest.mark.parametrize("case", CASES)
def test_every_structure_with_every_weighting(case, kind, assert_close):
    layer, shape = CASES[case]
    x = torch.randn(shape, dtype=torch.float64) + 3
    rows = _rows(layer, x)
    n, positions, d = rows.shape
    w = {
        "none": torch.ones(n),
        "mask of samples": torch.tensor([1, 0, 1, 1, 0, 1, 1])[:n],
        "real": torch.rand(n, dtype=torch.float64),
        "of positions": (torch.rand(n, positions) > 0.4).double(),
    }[kind].double()
    if kind == "of positions":
        w[0] = 0  # a whole sample of padding
    full = w.view(n, -1).expand(n, positions)
    given = None if kind == "none" else w
    if kind == "of positions":
        sizes = layers.output_positions(layer, layers.padded(layer, x))
        given = w.view(n, *sizes)
    expected = np.cov(rows.reshape(-1, d).numpy().T, ddof=0, aweights=full.flatten().numpy())
    expected = torch.from_numpy(expected).view(d, d)
    model = nn.Sequential(layer)
    y = layer.double()(x).detach()

    def found(**options):
        return collect(model, Inputs.of(x, given), ["0"], batch_size=2, **options)["0"]

    outputs = {} if case == "transposed" else {"0": nn.Identity()}
    moments = found(outputs=outputs, sampling_errors=True)
    assert math.isclose(moments.count, full.sum())
    assert math.isclose(moments.kish_count, full.sum() ** 2 / full.square().sum())
    mean = (full.flatten() @ rows.reshape(-1, d)) / full.sum()
    assert_close(moments.mean_x, mean, factor=10)
    assert_close(moments.covariance_x, expected, factor=20)
    if outputs:
        weight = layers.weight_matrix(layer)
        assert_close(moments.covariance_xy, expected @ weight.T, factor=100)
        assert_close(moments.covariance_y, weight @ expected @ weight.T, factor=100)
        assert y.shape[0] == n
    # blocks of a channel, and the diagonal
    block = found(structure="block")
    size = layers.variables_per_channel(layer)
    pieces = [expected[i : i + size, i : i + size] for i in range(0, d, size)]
    assert_close(block.covariance_x, torch.stack(pieces), factor=20)
    diagonal = found(structure="diagonal", sampling_errors=True)
    assert_close(diagonal.covariance_x, expected.diagonal(), factor=20)
    for any_structure in (moments, block, diagonal):
        assert_close(any_structure.variance_x, expected.diagonal(), factor=20)
        squares = (full.flatten()[:, None] * rows.reshape(-1, d).square()).sum(0)
        assert_close(any_structure.squared_norm_x, squares, factor=20)
    # what the errors are made of
    u = rows - mean
    errors = moments.errors
    norms = u.square().sum(-1)
    assert_close(errors.fourth, (full * norms.square()).sum(), factor=100)
    assert_close(errors.third, ((full * norms)[:, :, None] * u).sum((0, 1)), factor=1e3)
    sums = (full[:, :, None] * u).sum(1)
    offset = (full.sum(1)[:, None] * sums).sum(0)
    for kept in (errors, diagonal.errors):
        assert kept.clusters == (full.sum(1) > 0).sum()
        assert_close(kept.cluster_weight, full.sum(1).square().sum())
        assert_close(kept.cluster_scatter, sums.square().sum(0), factor=100)
        scale = full.sum(1).max() * sums.abs().max()
        assert (kept.cluster_offset - offset).abs().max() < 1e-11 * scale


def test_padded_positions_may_hold_anything():
    layer, x = nn.Linear(3, 2), torch.randn(4, 5, 3)
    mask = torch.rand(4, 5) > 0.5
    dirty = x.masked_fill(~mask[..., None], torch.nan)
    clean = measure(layer, x[mask])
    for options in ({}, {"structure": "diagonal"}, {"sampling_errors": True}):
        found = measure(layer, dirty, weights=mask, **options)
        torch.testing.assert_close(found.variance_x, clean.variance_x)
    assert measure(layer, x, weights=torch.zeros(4)).count == 0
    nothing = measure(layer, x, weights=torch.zeros(4)).merge(clean)
    torch.testing.assert_close(nothing.scatter_x, clean.scatter_x)
    with pytest.raises(ValueError, match="finite"):
        measure(layer, dirty, structure="diagonal")


class Heads(nn.Module):
    """A layer called twice, one never, a group of channels between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.never = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.second(F.relu(self.first(input=self.first(x))))


def test_any_loop_any_split_merges_and_resumes(tmp_path, assert_close):
    from safetensors.torch import load_file, save_file

    model, x = Heads().double(), torch.randn(12, 3, 6, dtype=torch.float64) * 3 + 50
    names = ["first", "second", "never"]
    options = {"sampling_errors": True, "outputs": {"second": nn.Tanh()}}

    def measured(*batches, into=None):
        found = Accumulator(model, names, **options) if into is None else into
        with found:
            for batch in batches:
                model(batch)
        return found

    whole = measured(x)
    once = model.first(x).detach()
    both = torch.cat([x, once]).reshape(-1, 6)
    assert set(whole.moments) == {"first", "second"}
    assert_close(whole.moments["first"].covariance_x, torch.cov(both.T, correction=0), factor=100)
    straight = measured(*x.split(5))
    model(x)  # not open any more
    assert straight.moments["first"].count == 72
    # interrupted, saved and continued: bit for bit
    begun = measured(x[:5])
    save_file(begun.state_dict(), tmp_path / "moments.safetensors")
    torch.save(begun.state_dict(), tmp_path / "moments.pt")
    resumed = Accumulator(model, names, **options)
    resumed.load_state_dict(load_file(tmp_path / "moments.safetensors"))
    measured(x[5:10], x[10:], into=resumed)
    again = Accumulator(model, names, **options)
    again.load_state_dict(torch.load(tmp_path / "moments.pt", weights_only=True))
    measured(x[5:10], x[10:], into=again)
    merged = measured(x[:1]).merge(measured(x[1:3], x[3:12])).merge(measured())
    expected = whole.state_dict()
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
        assert torch.equal(value, again.state_dict()[key]), key
        if not key.endswith("offset"):  # zero but for rounding
            for other in (value, merged.state_dict()[key]):
                assert_close(other, expected[key], factor=1e4 if "third" in key else 100)
    with pytest.raises(ValueError, match=r"got \['other'\]"):
        resumed.load_state_dict({"other.count": torch.ones(())})
    with pytest.raises(ValueError, match="diagonal"):
        Accumulator(model, names, structure="diagonal").load_state_dict(expected)


def test_channel_groups_name_their_layers():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3))
    graph = infoslice.trace(model, torch.randn(2, 6))
    found = Accumulator(model, graph.prunable)
    names = {name for group in graph.prunable for name in (*group.producers, *group.consumers)}
    assert names
    assert set(found.layers) == names


@pytest.mark.parametrize("structure", ["full", "block", "diagonal"])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 0.1, 0.3])])
def test_a_constant_channel_has_no_variance_at_all(structure, weights):
    x = torch.randn(3, 2, 6, 6)
    x[:, 1] = 0.1
    for layer, read in ((nn.Conv2d(2, 3, 3), x), (nn.Linear(2, 3), x.movedim(1, -1))):
        model = nn.Sequential(layer)
        found = collect(model, Inputs.of(read, weights), ["0"], batch_size=2, structure=structure)[
            "0"
        ]
        variance = found.variance_x.view(2, -1)
        assert variance[1].eq(0).all()
        assert variance[0].gt(0.5).all()


def test_blocks_of_heads(assert_close):
    model, x = nn.Sequential(nn.Linear(6, 2).double()), torch.randn(9, 4, 6, dtype=torch.float64)
    with Accumulator(model, ["0"], structure="block", block_sizes={"0": 3}) as found:
        model(x)
    rows = torch.cov(x.reshape(-1, 6).T, correction=0)
    expected = torch.stack([rows[:3, :3], rows[3:, 3:]])
    assert_close(found.moments["0"].covariance_x, expected, factor=20)
    with pytest.raises(ValueError, match="divisor of the 6"):
        measure(model[0], x, structure="block", block_size=4)


@pytest.mark.parametrize("split", [40, 7])
@pytest.mark.parametrize("dims", [6, 60])
def test_shrinkage_equals_scikit_learn(split, dims):
    x = (torch.randn(40, dims) @ torch.randn(dims, dims)).double() + 20
    model = nn.Sequential(nn.Linear(dims, 3).double())
    found = collect(
        model, Inputs.of(x), ["0"], batch_size=split, sampling_errors=True,
        outputs={"0": nn.Identity()},
    )["0"]  # fmt: skip
    for name, function in (("ledoit_wolf", ledoit_wolf), ("oas", oas)):
        expected, rho = function(x.numpy())
        shrunk = found.shrunk(name)
        error = np.abs(shrunk.covariance_x.numpy() - expected).max()
        assert error < 1e-10 * np.abs(expected).max()
        assert 0 < rho < 1
        # the joint covariance stays positive semidefinite
        top = torch.cat([shrunk.covariance_x, shrunk.covariance_xy], 1)
        bottom = torch.cat([shrunk.covariance_xy.T, shrunk.covariance_y], 1)
        assert torch.linalg.eigvalsh(torch.cat([top, bottom]))[0] > 0
        fewer = found.shrunk(name, count=10).covariance_x
        assert fewer[0, 1].abs() < shrunk.covariance_x[0, 1].abs()


def test_effective_count_of_autoregressive_sequences():
    """AR(1) of coefficient a: T tokens tell as much as T / (1 + 2 sum (1 - k/T) a^k)."""
    sequences, length = 400, 50
    a = torch.tensor([0.9] * 8)
    x = torch.empty(sequences, length, 8)
    x[:, 0] = torch.randn(sequences, 8)
    for t in range(1, length):
        x[:, t] = a * x[:, t - 1] + (1 - a.square()).sqrt() * torch.randn(sequences, 8)
    k = torch.arange(1, length)
    inflation = 1 + 2 * float(((1 - k / length) * 0.9**k).sum())
    model = nn.Sequential(nn.Linear(8, 2))
    options = {"batch_size": 32, "sampling_errors": True}
    full = collect(model, Inputs.of(x + 5), ["0"], **options)["0"].effective_count
    assert abs(full / (sequences * length / inflation) - 1) < 0.1
    # a mask that leaves one token of each sequence: those are independent
    mask = torch.zeros(sequences, length)
    mask[range(sequences), torch.randint(length, (sequences,))] = 1
    one = collect(model, Inputs.of(x, mask), ["0"], structure="diagonal", **options)["0"]
    assert math.isclose(one.effective_count, sequences, rel_tol=1e-9)
    shuffled = x.view(-1, 8)[torch.randperm(sequences * length)].view_as(x)
    free = collect(model, Inputs.of(shuffled), ["0"], **options)["0"].effective_count
    assert abs(free / (sequences * length) - 1) < 0.1


def test_refusals():
    layer, x = nn.Linear(3, 2), torch.randn(4, 5, 3)
    for weights, text in (
        (torch.ones(5), r"\(4, 5\)"),
        (torch.ones(4, 5, 3), r"\(4, 5\)"),
        (-torch.ones(4), ">= 0"),
        (torch.full((4,), torch.nan), ">= 0"),
    ):
        with pytest.raises(ValueError, match=text):
            measure(layer, x, weights=weights)
    with pytest.raises(ValueError, match="structure"):
        measure(layer, x, structure="banded")
    with pytest.raises(ValueError, match="argument y"):
        measure(layer, x, x, structure="block")
    model = nn.Sequential(layer)
    for bad, text in ((x, r"\(4, 5\).*layer '0'"), (x / 0, r"finite|NaN.*layer '0'")):
        with pytest.raises(ValueError, match=text):
            collect(model, Inputs.of(bad, torch.ones(4, 6) if bad is x else None), ["0"])
    found = measure(layer, x)
    with pytest.raises(ValueError, match="oas"):
        found.shrunk("glasso")
    with pytest.raises(ValueError, match="sampling_errors=True"):
        found.shrunk("ledoit_wolf")
    with pytest.raises(ValueError, match="sampling_errors=True"):
        _ = found.effective_count
    with pytest.raises(ValueError, match="full covariance"):
        measure(layer, x, structure="diagonal").shrunk("oas")
    with pytest.raises(ValueError, match="at least two"):
        _ = measure(layer, x[:1], sampling_errors=True).effective_count
    with pytest.raises(ValueError, match=r"3 inputs \(full\)"):
        found.merge(measure(layer, x, structure="diagonal"))
    with pytest.raises(TypeError, match=r"Accumulator: argument layers: .* a ReLU"):
        Accumulator(nn.Sequential(nn.ReLU()), ["0"])
