"""Curvature of outputs against its definition, and the criterion that weighs errors by it."""

import pytest
import torch
from torch import nn

import infoslice
from infoslice.criteria import obs
from infoslice.perturbation import Inputs
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
    found = output_curvature(net, Inputs.of(x), ["last", "first"], batch_size=5000)
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


def test_positions_of_convolutions_and_sequences(net):
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    assert output_curvature(conv, Inputs.of(torch.randn(9, 1, 5, 5)), ["0"])["0"].shape == (4, 4)
    found = output_curvature(net, Inputs.of(torch.randn(9, 5, 6)), ["last"], batch_size=2)
    assert found["last"].shape == (3, 3)


def test_score_is_the_rise_of_the_quadratic_loss(net):
    """The first channel to go raises E[e' F e] / 2 by its score, with the best refit."""
    x = torch.randn(400, 6)
    f = output_curvature(net, Inputs.of(x), ["last"])["last"]
    seen = {}

    def look(statistics, weights):
        seen["scores"] = obs(statistics, ridge=1e-9, centred=False, curvature={"last": f},
                             shrinkage=0.0)  # fmt: skip
        return seen["scores"]

    infoslice.prune(net, x[:1], data=x, pruning_ratio=0.5, criterion=look, show_progress=False)
    h = net.first(x).relu().detach().double()
    w = net.last.weight.detach().double()
    losses = []
    for c in range(8):
        kept = [i for i in range(8) if i != c]
        error = h @ w.T - h[:, kept] @ torch.linalg.lstsq(h[:, kept], h @ w.T).solution
        losses.append(((error @ f) * error).sum(1).mean() / 2)
    expected = torch.stack(losses)
    assert seen["scores"].argmin() == expected.argmin()
    torch.testing.assert_close(seen["scores"].min(), expected.min(), rtol=1e-4, atol=1e-9)


def test_refuses(net):
    x = Inputs.of(torch.randn(4, 6))
    with pytest.raises(ValueError, match="argument layers"):
        output_curvature(nn.Sequential(nn.LayerNorm(6), net), x, ["0"])
    with pytest.raises(ValueError, match="argument curvature"):
        infoslice.prune(net, torch.randn(1, 6), criterion="obs", show_progress=False,
                        criterion_options={"curvature": {}})  # fmt: skip
