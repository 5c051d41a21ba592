"""Curvature of outputs against its definition, and the criterion that weighs errors by it."""

import copy
import itertools

import pytest
import torch
from torch import nn

import infoslice
from infoslice.criteria import causal, flap, greedy_mi, obs
from infoslice.perturbation import Inputs
from infoslice.refinement import swaps
from infoslice.statistics import output_curvature


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_is_the_fisher_information_of_the_logits(net):
    """Of the last layer it is the mean of diag(p) - p p', whatever labels are drawn."""
    x = torch.randn(20000, 6)
    found = output_curvature(net, Inputs.of(x), ["last", "first"], shrinkage=0, batch_size=20000)
    with torch.no_grad():
        p = net(x).softmax(1).double()
        expected = torch.diag(p.mean(0)) - p.T @ p / len(p)
    torch.testing.assert_close(found["last"], expected, rtol=0, atol=0.01)
    active = (net.first(x) > 0).double()
    w = net.last.weight.detach().double()
    each = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    through = torch.einsum("ncd,ci,dj,ni,nj->ij", each, w, w, active, active) / len(x)
    torch.testing.assert_close(found["first"], through, rtol=0, atol=0.01)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def _convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(27, 3)
    )


@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_foretells_what_small_independent_errors_of_an_output_do(layer, loss):
    """Noise of any covariance on the output of one layer, at all its positions."""
    net, x = _convolutions(), torch.randn(4000, 1, 7, 7)
    f = output_curvature(net, Inputs.of(x), [layer], loss=loss, shrinkage=0, batch_size=4000)[layer]
    root = torch.randn(len(f), len(f)) * 0.03

    def disturbed(module, args, y):
        noise = torch.randn_like(y).movedim(1, -1) @ root.T
        return y + noise.movedim(-1, 1)

    with torch.no_grad():
        before = net(x)
        handle = net.get_submodule(layer).register_forward_hook(disturbed)
        after = net(x)
        handle.remove()
        if loss == "cross_entropy":
            p = before.softmax(1)
            rise = (p * (before.log_softmax(1) - after.log_softmax(1))).sum(1).mean()
        else:
            rise = (after - before).square().sum() / before.square().sum()
    expected = (f @ (root @ root.T).double()).diagonal().sum() / 2
    torch.testing.assert_close(rise.double(), expected, rtol=0.15, atol=0)


def test_counts_a_prediction_of_each_token_and_adds_up_calls(net):
    x = torch.randn(40, 5, 6)
    options = {"shrinkage": 0, "batch_size": 200}
    rows = output_curvature(net, Inputs.of(x.flatten(0, 1)), ["last"], **options)["last"]
    found = output_curvature(net, Inputs.of(x), ["last"], **options)["last"]
    torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-8)
    first = nn.Linear(6, 6)
    twice = nn.Sequential(first, nn.Tanh(), first)
    apart = nn.Sequential(first, nn.Tanh(), copy.deepcopy(first))
    both = output_curvature(twice, Inputs.of(x), ["0"], loss="squared_error", **options)["0"]
    each = output_curvature(apart, Inputs.of(x), ["0", "2"], loss="squared_error", **options)
    torch.testing.assert_close(both, each["0"] + each["2"], rtol=1e-5, atol=1e-8)


def test_runs_no_more_batches_than_it_needs(net):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    output_curvature(net, Inputs.of(torch.randn(1000, 6)), ["first"], batch_size=16)
    assert len(calls) == 4  # 64 = 8 x 8 positions


def test_shrinkage_keeps_the_trace(net):
    x = Inputs.of(torch.randn(100, 6))
    plain, half, all_ = (
        output_curvature(net, x, ["first"], shrinkage=s)["first"] for s in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(half, (plain + all_) / 2)
    torch.testing.assert_close(all_, torch.eye(8).double() * plain.diagonal().mean())


def _pruned_by(net, x, criterion, **options):
    seen = {}

    def look(statistics, weights):
        seen["scores"] = criterion(statistics, **options)
        return seen["scores"]

    infoslice.prune(net, x[:1], data=x, pruning_ratio=0.5, criterion=look, show_progress=False)
    return seen["scores"]


def _losses(net, x, f):
    """By what E[e' F e] / 2 rises without one channel, with the best refit of the others."""
    h = net.first(x).relu().detach().double()
    w = net.last.weight.detach().double()
    h, losses = h - h.mean(0), []
    for c in range(8):
        kept = [i for i in range(8) if i != c]
        error = h @ w.T - h[:, kept] @ torch.linalg.lstsq(h[:, kept], h @ w.T).solution
        losses.append(((error @ f) * error).sum(1).mean() / 2)
    return torch.stack(losses)


def test_scores_of_obs_and_causal_are_rises_of_the_loss(net):
    x = torch.randn(400, 6)
    f = output_curvature(net, Inputs.of(x), ["last"])["last"]
    expected = _losses(net, x, f)
    options = {"ridge": 1e-9, "greedy": False, "curvature": "cross_entropy"}
    found = _pruned_by(net, x, obs, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    for s in (1.0, 0.01):
        nats = _pruned_by(net, x, causal, noise_variance=s, **options)
        # One variable: 1/2 log(1 + 2 loss / s), of noise of precision F / s.
        torch.testing.assert_close(nats, (1 + 2 * expected / s).log() / 2, rtol=1e-4, atol=1e-9)


def test_greedy_mi_takes_first_what_tells_most_about_the_loss(net):
    x = torch.randn(400, 6)
    f = output_curvature(net, Inputs.of(x), ["last"])["last"]
    h = net.first(x).relu().detach().double()
    s = torch.cov(h.T, correction=0)
    values, vectors = torch.linalg.eigh(f)
    w = (values.sqrt() * vectors).T @ net.last.weight.detach().double()
    y = w @ s @ w.T + torch.eye(3)
    told = [
        -0.5 * torch.logdet(torch.eye(3) - torch.outer(c := w @ s[i], c) @ y.inverse() / s[i, i])
        for i in range(8)
    ]
    scores = _pruned_by(net, x, greedy_mi, ridge=0.0, curvature="cross_entropy")
    torch.testing.assert_close(scores.max(), torch.stack(told).max(), rtol=1e-6, atol=0)
    assert scores.argmax() == torch.stack(told).argmax()


def test_swaps_lower_the_rise_of_the_loss(net):
    with torch.no_grad():
        net.last.weight[0] *= 3  # an output that is large, and that the loss does not mind
        net.last.bias[0] -= 30
    x = torch.randn(400, 6)
    f = output_curvature(net, Inputs.of(x), ["last"])["last"]
    w, h = net.last.weight.detach().double(), net.first(x).relu().detach().double()
    h = h - h.mean(0)

    def loss(kept, f):
        error = h @ w.T - h[:, kept] @ torch.linalg.lstsq(h[:, kept], h @ w.T).solution
        return float(((error @ f) * error).sum(1).mean() / 2)

    found = {}

    def look(statistics, weights):
        for name in ("cross_entropy", None):
            keep = swaps(statistics, torch.tensor([0, 1, 2]), ridge=1e-9, curvature=name)
            found[name] = keep.tolist()
        return torch.ones(8)

    infoslice.prune(net, x[:1], data=x, pruning_ratio=0.5, criterion=look, show_progress=False)
    for name, curvature in ("cross_entropy", f), (None, torch.eye(3).double()):
        here = loss(found[name], curvature)
        for out, new in itertools.product(found[name], set(range(8)) - set(found[name])):
            other = sorted({*found[name], new} - {out})
            assert here <= loss(other, curvature) * (1 + 1e-6)
    assert loss(found["cross_entropy"], f) < loss(found[None], f)


def test_flap_weighs_the_error_of_a_channel_that_becomes_its_mean(net):
    x = torch.randn(400, 6)
    f = output_curvature(net, Inputs.of(x), ["last"])["last"]
    w = net.last.weight.detach().double()
    h = net.first(x).relu().detach().double()
    expected = h.var(0, correction=0) * ((w.T @ f) * w.T).sum(1) / 2
    found = _pruned_by(net, x, flap, curvature="cross_entropy")
    torch.testing.assert_close(found, expected)


def test_refuses(net):
    x = Inputs.of(torch.randn(4, 6))
    with pytest.raises(ValueError, match="argument layers"):
        output_curvature(nn.Sequential(nn.LayerNorm(6), net), x, ["0"])
    with pytest.raises(ValueError, match="argument loss"):
        output_curvature(net, x, ["last"], loss="hinge")
    with pytest.raises(ValueError, match="argument shrinkage"):
        output_curvature(net, x, ["last"], shrinkage=2)
    net.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="are called"):
        output_curvature(net, x, ["spare", "last"])
    for options in ({"score": "output"}, {}):
        with pytest.raises(ValueError, match="argument curvature"):
            infoslice.prune(
                net, torch.randn(1, 6), criterion="causal", show_progress=False,
                target="pre" if options else "post",
                criterion_options={"curvature": "cross_entropy", **options},
            )  # fmt: skip
    with pytest.raises(ValueError, match="flap: argument curvature"):
        infoslice.prune(
            net, torch.randn(1, 6), criterion="flap", show_progress=False,
            criterion_options={"curvature": "cross_entropy", "metric": "ifv"},
        )  # fmt: skip
