"""Forwards that wait at layers: each sees what an ordinary forward sees, once."""

import contextlib
import threading

import pytest
import torch
from torch import nn

from infoslice.lockstep import Lockstep
from infoslice.perturbation import Inputs


class Counting(nn.Module):
    """Three layers in a row; counts its forwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.c(self.b(self.a(x).relu()).relu_())


def _batches(count=3):
    return list(Inputs.of(torch.randn(2 * count, 3)).batches(2))


@pytest.mark.parametrize("after", [False, True])
def test_each_layer_shows_what_an_ordinary_forward_shows(after):
    model, batches = Counting(), _batches()
    seen = {}
    for name in ("a", "b", "c"):
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: seen.setdefault(name, []).append(
                (out if after else args[0]).detach().clone()
            )
        )
    with torch.no_grad():
        for batch in batches:
            model(*batch.args)
    expected = {name: list(values) for name, values in seen.items()}
    model.calls = 0
    with Lockstep(model, batches, ("a", "b", "c"), after=after) as walk:
        for name in ("a", "c"):  # layers may be passed over
            for got, value in zip(walk.at(name), expected[name], strict=True):
                assert torch.equal(got, value)
            assert all(g is h for g, h in zip(walk.at(name), walk.at(name), strict=True))
    assert model.calls == 3


def test_a_layer_changed_while_the_forwards_wait_is_used_as_it_is_then():
    model, batches = Counting(), _batches()
    with Lockstep(model, batches, ("b", "c"), after=False) as walk:
        before = [x.clone() for x in walk.at("b")]
        with torch.no_grad():
            model.b.weight.copy_(torch.eye(4))
            model.b.bias.zero_()
        for x, y in zip(before, walk.at("c"), strict=True):
            assert torch.equal(y, x.relu())


def test_mode_and_hooks_are_put_back_and_no_thread_is_left():
    model = Counting().train()
    threads = threading.active_count()
    with contextlib.suppress(KeyError), Lockstep(model, _batches(), ("b",), after=False) as walk:
        assert not model.training
        walk.at("b")
        assert threading.active_count() == threads + 3
        raise KeyError
    assert model.training
    assert model.a.training
    assert not model.b._forward_pre_hooks
    assert threading.active_count() == threads


def test_what_a_forward_raises_is_raised_here():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))
    with Lockstep(model, _batches(), ("0", "1"), after=True) as walk:
        walk.at("0")
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            walk.at("1")


def test_a_layer_that_is_not_reached_is_refused():
    model = Counting()
    with Lockstep(model, _batches(), ("a", "b"), after=False) as walk:
        walk.at("b")
        with pytest.raises(ValueError, match="expected a layer that the forward calls after"):
            walk.at("a")
        with pytest.raises(ValueError, match="got 'b'"):
            walk.at("b")


def test_another_forward_of_the_model_does_not_wait():
    model, batches = Counting(), _batches()
    with Lockstep(model, batches, ("b",), after=False) as walk:
        walk.at("b")
        assert model(torch.zeros(1, 3)).shape == (1, 2)


class Residual(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.inplace = inplace

    def forward(self, x):
        y = self.norm(self.a(x))
        if self.inplace:
            y += 2 * x
        else:
            y = 2 * x + y
        return self.b(y)


@pytest.mark.parametrize("inplace", [False, True])
def test_at_a_sum_the_other_operand_is_seen_and_the_first_replaced(inplace):
    model = Residual(inplace).eval()
    batches = list(Inputs.of(torch.randn(6, 4)).batches(2))
    with Lockstep(model, batches, ("a", "b"), after=False, added=("norm",)) as walk:
        walk.at("a")
        for other, batch in zip(walk.at_sum("norm"), batches, strict=True):
            assert torch.equal(other, 2 * batch.args[0])
        walk.replace([torch.full_like(batch.args[0], 3.0) for batch in batches])
        for x, batch in zip(walk.at("b"), batches, strict=True):
            assert torch.equal(x, 2 * batch.args[0] + 3)


def test_a_layer_may_be_called_with_keywords_alone():
    class Named(Counting):
        def forward(self, x):
            return super().forward(self.a(input=x)[:, :3])

    model, batches = Named(), _batches()
    with Lockstep(model, batches, ["a", "b"], after=False) as walks:
        for batch, x in zip(batches, walks.at("a"), strict=True):
            assert x is batch.args[0]
        assert walks.at("b")[0].shape == (2, 4)
