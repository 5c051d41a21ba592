"""Optimizer state is cut with the parameters: training goes on as if it had always been so."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from infoslice import replacement
from infoslice.graph import trace
from infoslice.replacement import like
from infoslice.surgery import plan
from networks import Residual, Tied, inputs, make
from oracle import random_plan

X = inputs(Residual)


def step(model, optimizer, x=X):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def trained(optimizer_of, steps=3):
    """A model in training with the optimizer that trains it."""
    model = make(Residual)
    optimizer = optimizer_of(model.parameters())
    for _ in range(steps):
        step(model, optimizer)
    optimizer.zero_grad()
    return model, optimizer


def sliced_state_dict(optimizer, model, edits):
    """By the edit list alone, as another tool would do it."""
    state = copy.deepcopy(optimizer.state_dict())
    names = {id(p): name for name, p in model.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    for index, entries in state["state"].items():
        for key, value in entries.items():
            for edit in edits:
                if edit.tensor == ordered[index] and torch.is_tensor(value) and value.dim():
                    value = value.index_select(edit.axis, edit.keep)
            entries[key] = value
    return state


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p),
    "adam foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "asgd": lambda p: torch.optim.ASGD(p),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on(kind):
    """As with an optimizer made on the smaller model and given the sliced state."""
    optimizer_of = OPTIMIZERS[kind]
    model, optimizer = trained(optimizer_of)
    twin = copy.deepcopy(model)
    pruning = random_plan(trace(model, X), 3, least=2)
    reference = pruning.apply(twin)
    expected = optimizer_of(reference.model.parameters())
    expected.load_state_dict(sliced_state_dict(optimizer, model, reference.edits))

    assert pruning.apply(model, inplace=True, optimizer=optimizer).model is model
    for _ in range(2):
        step(model, optimizer)
        step(reference.model, expected)
    for (name, ours), theirs in zip(
        model.named_parameters(), reference.model.parameters(), strict=True
    ):
        # NAdam loads single-precision numbers in the precision of the parameter.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=name)
        assert set(optimizer.state[ours]) == set(expected.state[theirs])
        for key, value in optimizer.state[ours].items():
            twin = torch.as_tensor(expected.state[theirs][key], dtype=torch.float64)
            torch.testing.assert_close(
                torch.as_tensor(value, dtype=torch.float64), twin, rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("kind", ["momentum", "adamw amsgrad", "adam fused"])
def test_a_step_of_the_slice_is_a_slice_of_the_step(kind):
    """Given the same gradients, stepping and cutting commute."""
    model, optimizer = trained(OPTIMIZERS[kind])
    pruning = random_plan(trace(model, X), 5)
    twin, twins_optimizer = trained(OPTIMIZERS[kind])
    model(X).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    expected = pruning.apply(model).model

    edits = pruning.apply(twin, inplace=True, optimizer=twins_optimizer).edits
    for edit in edits:
        if edit.tensor in gradients:
            cut = gradients[edit.tensor].index_select(edit.axis, edit.keep)
            gradients[edit.tensor] = cut
    for name, parameter in twin.named_parameters():
        parameter.grad = gradients[name]
    twins_optimizer.step()
    for ours, theirs in zip(twin.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_groups_schedulers_and_identity_stay():
    model = make(Residual)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "lr": 0.1}, {"params": rest}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step(model, optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    before = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    groups = list(optimizer.param_groups)
    random_plan(trace(model, X), 1, least=2).apply(model, inplace=True, optimizer=optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    after = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert after == before
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert set(map(id, optimizer.state)) == {id(p) for p in model.parameters()}
    step(model, optimizer)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


def test_gradient_scaler():
    model, optimizer = trained(OPTIMIZERS["momentum"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def scaled_step():
        optimizer.zero_grad()
        scaler.scale(model(X).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    scaled_step()
    random_plan(trace(model, X), 1).apply(model, inplace=True, optimizer=optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    scaled_step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def test_two_optimizers():
    """As one uses Muon: for matrices, with another for the rest."""
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))
    matrices = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    rest = torch.optim.Adam([p for p in model.parameters() if p.dim() == 1])
    x = torch.randn(5, 4)
    model(x).sum().backward()
    matrices.step()
    rest.step()
    pruning = plan(trace(model, x), keep={"0": [0, 2, 7], "2": [1, 5]})
    with pytest.raises(ValueError, match=r"got Muon without 0\.bias"):
        pruning.apply(model, inplace=True, optimizer=matrices)
    momentum = matrices.state[model[2].weight]["momentum_buffer"]
    pruning.apply(model, inplace=True, optimizer=[matrices, rest])
    expected = momentum[[1, 5]][:, [0, 2, 7]]
    assert torch.equal(matrices.state[model[2].weight]["momentum_buffer"], expected)
    assert rest.state[model[0].bias]["exp_avg"].shape == (3,)
    model(x).sum().backward()
    matrices.step()
    rest.step()


def test_tied_parameters_and_formats_of_state():
    model = make(Tied, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = inputs(Tied, torch.float32)
    step(model, optimizer, x)
    shared = optimizer.state[model.first.weight]["momentum_buffer"].clone()
    keep = [1, 2, 5]
    plan(trace(model, x), keep={"weight": keep}).apply(model, inplace=True, optimizer=optimizer)
    assert torch.equal(
        optimizer.state[model.second.weight]["momentum_buffer"], shared[keep][:, keep]
    )
    # State of another precision and memory format than the parameter.
    image = make(Residual, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(image.parameters(), 0.1)
    for parameter in image.parameters():
        values = torch.randn_like(parameter, dtype=torch.float64)
        optimizer.state[parameter] = {"master": values, "step": 3, "note": None}
    graph = trace(image, inputs(Residual, torch.bfloat16))
    random_plan(graph, 2).apply(image, inplace=True, optimizer=optimizer)
    for parameter, state in optimizer.state.items():
        assert state["master"].dtype == torch.float64
        assert state["master"].stride() == parameter.stride()
        assert (state["step"], state["note"]) == (3, None)


def test_old_memory_is_freed():
    model, optimizer = trained(OPTIMIZERS["adam"])
    old = [weakref.ref(model.stem[0].weight)]
    old += [weakref.ref(v) for v in optimizer.state[model.stem[0].weight].values() if v.dim()]
    plan(trace(model, X), keep={"stem.0": [0, 1]}).apply(model, inplace=True, optimizer=optimizer)
    gc.collect()
    assert [ref() for ref in old] == [None, None, None]


# ---- refused, and nothing changed


def other_model(model):
    return torch.optim.Adam(make(Residual).parameters())


def adafactor(model):
    return torch.optim.Adafactor(model.parameters())


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters())


class Preconditioned(torch.optim.SGD):
    """A square factor for the first axis: of a square weight it has the shape by coincidence."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["factor"] = torch.eye(len(p), dtype=p.dtype)


class Histories(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["past"] = [torch.zeros_like(p)]


class Wrapper(torch.optim.SGD):
    def __init__(self, parameters):
        parameters = list(parameters)
        super().__init__(parameters, 0.1)
        self.inner = torch.optim.SGD(parameters, 0.1)


class Hoarder(torch.optim.SGD):
    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.cache = {"all": [p for group in self.param_groups for p in group["params"]]}


@pytest.mark.parametrize(
    ("make_optimizer", "error", "message"),
    [
        (other_model, ValueError, r"got Adam without 0\.weight; was it made for another model"),
        (lambda m: torch.optim.Adam(m[4].parameters()), ValueError, r"Adam without 0\.weight"),
        (adafactor, ValueError, r"Adafactor with state\[0\.weight\]\['row_var'\], of shape"),
        (lbfgs, ValueError, "LBFGS that keeps one flat vector"),
        (
            lambda m: Preconditioned(m.parameters()),
            ValueError,
            r"state\[0\.weight\]\['factor'\], of shape \(6, 6\) by coincidence",
        ),
        (lambda m: Histories(m.parameters()), ValueError, r"\['past'\], a list of tensors"),
        (lambda m: Wrapper(m.parameters()), TypeError, r"Wrapper that wraps SGD in \.inner"),
        (lambda m: Hoarder(m.parameters()), TypeError, r"Hoarder with 0\.weight in \.cache too"),
        (lambda m: m.parameters(), TypeError, "got generator"),
        (lambda m: torch.optim.lr_scheduler.ExponentialLR, TypeError, "got type"),
    ],
)
def test_refused(make_optimizer, error, message):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 6)
    optimizer = make_optimizer(model)
    if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(
        optimizer, torch.optim.LBFGS
    ):
        step(model, optimizer, x)
    pruning = plan(trace(model, x), keep={"0": [1, 2], "2": [0]})
    before = {name: (id(t), t.detach().clone()) for name, t in model.named_parameters()}
    with pytest.raises(error, match=message):
        pruning.apply(model, inplace=True, optimizer=optimizer)
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_a_failure_while_cutting_changes_nothing(monkeypatch):
    """Memory may run out at any tensor."""
    model, optimizer = trained(OPTIMIZERS["adam"])
    pruning = plan(trace(model, X), keep={"stem.0": [0, 1], "blocks.1.b.0": [3]})
    parameters = list(model.parameters())
    states = [dict(optimizer.state[p]) for p in parameters]

    def fail(old, values):
        if old is states[-2]["exp_avg"]:
            raise MemoryError
        return like(old, values)

    monkeypatch.setattr(replacement, "like", fail)
    with pytest.raises(MemoryError):
        pruning.apply(model, inplace=True, optimizer=optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(parameters, optimizer.param_groups[0]["params"], strict=True))
    for parameter, state in zip(parameters, states, strict=True):
        assert all(optimizer.state[parameter][key] is value for key, value in state.items())
    assert model.stem[0].out_channels == 6
    step(model, optimizer)


def test_not_for_a_copy():
    model, optimizer = trained(OPTIMIZERS["adam"])
    with pytest.raises(ValueError, match="expected inplace=True with it"):
        plan(trace(model, X), keep={"stem.0": [0]}).apply(model, optimizer=optimizer)


def test_frozen_parameters_need_no_optimizer():
    model = make(Residual)
    model.stem.requires_grad_(False)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    step(model, optimizer)
    pruning = plan(trace(model, X), keep={"stem.0": [0, 3]})
    pruning.apply(model, inplace=True, optimizer=optimizer)
    assert not model.stem[0].weight.requires_grad
    step(model, optimizer)


def test_an_optimizer_made_before_an_earlier_cut():
    """The trap: it would train parameters that are no longer part of the model."""
    model, optimizer = trained(OPTIMIZERS["adam"])
    plan(trace(model, X), keep={"stem.0": [0, 1, 2, 3]}).apply(model, inplace=True)
    again = plan(trace(model, X), keep={"stem.0": [0, 1]})
    with pytest.raises(
        ValueError, match=r"got Adam without stem\.0\.weight.*before an earlier cut"
    ):
        again.apply(model, inplace=True, optimizer=optimizer)


def test_a_wrapper_that_shares_state():
    """Wrappers that hand through the groups and the state of the optimizer within are followed."""

    class Through(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

        state = property(lambda self: self.inner.state)
        param_groups = property(lambda self: self.inner.param_groups)

    model, optimizer = trained(OPTIMIZERS["adam"])
    plan(trace(model, X), keep={"stem.0": [0, 1]}).apply(
        model, inplace=True, optimizer=Through(optimizer)
    )
    assert optimizer.state[model.stem[0].weight]["exp_avg"].shape == (2, 3, 3, 3)
    step(model, optimizer)
