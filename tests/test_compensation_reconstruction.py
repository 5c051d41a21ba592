"""The refit behind a ReLU: what it may give up, and that it gives up nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import infoslice
from infoslice.compensation import reconstruction
from infoslice.compensation.reconstruction import reconstruct_
from infoslice.graph.following import following, sums

KEPT = torch.tensor([0, 1, 3])[:, None].mul(9).add(torch.arange(9)).flatten()  # channels of 9 taps


def _layer_and_batches(count=3):
    """A convolution, a batch norm of gains of both signs, inputs and the original's outputs."""
    layer, norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.7, 0.2, 2.0, -1.0, 0.0]))
        norm.bias.uniform_(-1, 1)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    inputs = [torch.randn(8, 4, 5, 5).relu() for _ in range(count)]
    outputs = [layer(x).detach() for x in inputs]
    return layer, norm, inputs, outputs


def _error(layer, norm, inputs, wanted, here):
    """What a ReLU sees of the errors; where the original is positive, all of them."""
    total = 0.0
    with torch.no_grad():
        for x, w, h in zip(inputs, wanted, here, strict=True):
            given = norm(layer(x)) + h
            total += torch.where(w > 0, w - given, given.relu()).square().sum().item()
    return total


@pytest.mark.parametrize("summed", [False, True])
def test_each_repetition_lowers_the_error_that_the_relu_lets_through(summed, monkeypatch):
    layer, norm, inputs, outputs = _layer_and_batches()
    there = [torch.randn_like(y) * summed for y in outputs]
    here = [t + 0.3 * torch.randn_like(t) * summed for t in there]
    others = list(zip(there, here, strict=True)) if summed else None
    with torch.no_grad():
        wanted = [norm(y) + t for y, t in zip(outputs, there, strict=True)]
    errors = []
    for rounds in range(5):
        monkeypatch.setattr(reconstruction, "ROUNDS", rounds)
        fitted, after = copy.deepcopy(layer), copy.deepcopy(norm)
        options = {"norm": after, "others": others, "rectified": True, "ridge": 1e-9}
        reconstruct_(fitted, inputs, outputs, KEPT, **options)
        errors.append(_error(fitted, after, inputs, wanted, here))
        assert (fitted.weight[:, 2] == 0).all()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * errors[0]


def test_what_can_be_given_exactly_behind_the_relu_is_found(monkeypatch):
    layer = nn.Linear(3, 2).double()
    x = torch.randn(400, 3, dtype=torch.float64)
    exact = x @ torch.tensor([[1.0, -2.0], [0.5, 1.0], [0.0, 0.0]], dtype=torch.float64) + 0.3
    y = torch.where(exact > 0, exact, -5 * torch.rand_like(exact))  # no linear map below zero
    monkeypatch.setattr(reconstruction, "ROUNDS", 300)
    reconstruct_(layer, [x], [y], torch.tensor([0, 1]), rectified=True, ridge=1e-12)
    torch.testing.assert_close(layer(x).detach().relu(), y.relu(), rtol=0, atol=1e-3)


def test_what_the_other_operand_lacks_is_made_up_for():
    layer, norm, inputs, outputs = _layer_and_batches()
    with torch.no_grad():
        norm.weight[5] = 0.9
        others = [(torch.randn_like(y), 0.1 * torch.randn_like(y)) for y in outputs]
        # What is lacking is itself a function of what the layer reads: all of it can be had.
        extra = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        others = [(here + extra(x), here) for x, (_, here) in zip(inputs, others, strict=True)]
        wanted = [norm(y) + t for y, (t, _) in zip(outputs, others, strict=True)]
        reconstruct_(layer, inputs, outputs, torch.arange(36), norm=norm, others=others, ridge=1e-9)
        for x, w, (_, here) in zip(inputs, wanted, others, strict=True):
            torch.testing.assert_close(norm(layer(x)) + here, w, rtol=1e-3, atol=1e-3)


class Blocks(nn.Module):
    """A residual block with a ReLU behind the sum and one without."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = F.gelu(self.stem(x))
        x = F.relu_(x + self.b(self.a(x).relu()))
        return self.fc((x + self.c(x)).mean((2, 3)))


def test_a_relu_is_recognised_where_it_alone_reads_the_result():
    graph = infoslice.trace(Blocks(), torch.zeros(1, 1, 8, 8))
    found = {name: where.rectified for name, where in sums(graph).items()}
    assert found == {"b": True, "c": False}
    steps = following(graph)
    assert [step.is_relu for step in steps["a"]] == [True]
    assert [step.is_relu for step in steps["stem"]] == [False]
