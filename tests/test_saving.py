"""Pruned models on disk: exact round trips, no pickle, and no half-written or mismatched files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from infoslice import saving
from infoslice.graph import trace
from infoslice.saving import load_pruned, save_pruned
from infoslice.surgery import PruningPlan, plan
from networks import MODELS, Residual, Tied, inputs, make
from oracle import random_plan


def pruned(kind, dtype=torch.float32, seed=0):
    model = make(kind, dtype=dtype)
    pruning = random_plan(trace(model, inputs(kind, dtype)), seed, least=2)
    return pruning.apply(model).model, pruning


def assert_equal(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("fresh", ["other weights", "meta", "factory"])
def test_round_trip(kind, fresh, tmp_path):
    small, pruning = pruned(kind)
    written = save_pruned(small, pruning, tmp_path / "net")
    assert written == (tmp_path / "net.safetensors", tmp_path / "net.json")
    assert sorted(tmp_path.iterdir()) == sorted(written)
    if fresh == "meta":
        with torch.device("meta"):
            model = kind()
    else:
        model = make(kind, seed=77, dtype=torch.float32)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    loaded = load_pruned(kind if fresh == "factory" else model, tmp_path / "net")
    assert_equal(loaded, small)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before
    x = inputs(kind, torch.float32)
    assert torch.equal(loaded.eval()(x), small(x))
    loaded.train()(x).sum().backward()


def test_trained_further_and_another_precision(tmp_path):
    small, pruning = pruned(Residual)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(0.5)
    small.half()
    save_pruned(small, pruning, str(tmp_path / "net.safetensors"))
    fresh = make(Residual, dtype=torch.float32).requires_grad_(False)
    fresh.head.weight.no_weight_decay = True
    fresh = fresh.to(memory_format=torch.channels_last)
    loaded = load_pruned(fresh, tmp_path / "net.json")
    assert_equal(loaded, small)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.head.weight.no_weight_decay
    assert loaded.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.stem[0].out_channels == len(loaded.stem[0].weight)


def test_ties_are_stored_once(tmp_path):
    small, pruning = pruned(Tied)
    weights, plan_file = save_pruned(small, pruning, tmp_path / "net")
    assert "second.weight" not in load_file(weights)
    assert json.loads(plan_file.read_text())["ties"] == {"second.weight": "first.weight"}
    loaded = load_pruned(Tied(), tmp_path / "net")
    assert loaded.first.weight is loaded.second.weight
    untied = Tied()
    untied.second.weight = nn.Parameter(untied.second.weight.detach().clone())
    with pytest.raises(ValueError, match="expected the parameters and buffers planned"):
        load_pruned(untied, tmp_path / "net")


class Scaled(nn.Module):
    """With a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.arange(6.0), persistent=False)

    def forward(self, x):
        return self.b(self.a(x) * self.scale)


def test_buffers_that_are_not_saved(tmp_path):
    model = Scaled()
    pruning = plan(trace(model, torch.zeros(1, 3)), keep={"a": [1, 4]})
    small = pruning.apply(model).model
    assert small.scale.tolist() == [1, 4]
    save_pruned(small, pruning, tmp_path / "net")
    loaded = load_pruned(Scaled(), tmp_path / "net")
    assert loaded.scale.tolist() == [1, 4]
    assert_equal(loaded, small)
    with torch.device("meta"):
        fresh = Scaled()
    with pytest.raises(ValueError, match=r"values for the buffer scale, .*got the meta device"):
        load_pruned(fresh, tmp_path / "net")


def test_wrong_model_for_the_plan(tmp_path):
    small, pruning = pruned(Residual)
    with pytest.raises(ValueError, match="save_pruned: argument model: expected the parameters"):
        save_pruned(make(Residual, dtype=torch.float32), pruning, tmp_path / "net")
    with pytest.raises(ValueError, match=r"expected weights, got .* on meta"):
        save_pruned(small.to("meta"), pruning, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
    small, pruning = pruned(Residual)
    save_pruned(small, pruning, tmp_path / "net")
    with pytest.raises(ValueError, match=r"expected .* of shape"):
        load_pruned(small, tmp_path / "net")
    with pytest.raises(FileNotFoundError):
        load_pruned(Residual(), tmp_path / "nowhere")
    for wrong, name in ((lambda: 3, "int from the function"), ("net", "str")):
        with pytest.raises(TypeError, match=f"expected a torch.nn.Module or .* got {name}"):
            load_pruned(wrong, tmp_path / "net")


def test_pruned_in_steps(tmp_path):
    """The first cut is made again from its plan alone, the rest is loaded."""
    model = make(Residual, dtype=torch.float32)
    first = random_plan(trace(model, inputs(Residual, torch.float32)), 1, least=4)
    once = first.apply(model).model
    second = random_plan(trace(once, inputs(Residual, torch.float32)), 2)
    twice = second.apply(once).model
    save_pruned(twice, second, tmp_path / "net")
    first = PruningPlan.from_json(first.to_json())
    with torch.device("meta"):
        fresh = Residual()
    fresh = first.apply(fresh).model
    assert_equal(load_pruned(fresh, tmp_path / "net"), twice)


class Extra(Scaled):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def test_extra_state_is_refused(tmp_path):
    model = Extra()
    pruning = plan(trace(model, torch.zeros(1, 3)), keep={"a": [1, 4]})
    with pytest.raises(TypeError, match=r"save_pruned: .*got _extra_state of type dict"):
        save_pruned(pruning.apply(model).model, pruning, tmp_path / "net")


def test_files_of_different_plans_do_not_mix(tmp_path):
    for seed, name in enumerate(("one", "two")):
        small, pruning = pruned(Residual, seed=seed)
        save_pruned(small, pruning, tmp_path / name)
    (tmp_path / "one.json").replace(tmp_path / "two.json")
    with pytest.raises(ValueError, match="expected files written together"):
        load_pruned(Residual(), tmp_path / "two")


def test_damaged_json(tmp_path):
    small, pruning = pruned(Residual)
    _, plan_file = save_pruned(small, pruning, tmp_path / "net")
    for text in ("{", "{}", plan_file.read_text().replace("infoslice.pruned", "x")):
        plan_file.write_text(text)
        with pytest.raises(ValueError, match=r"load_pruned: net\.json: expected infoslice\.pruned"):
            load_pruned(Residual(), tmp_path / "net")


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch, failing):
    first, first_plan = pruned(Residual)
    written = save_pruned(first, first_plan, tmp_path / "net")
    before = [path.read_bytes() for path in written]

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(saving if failing == "save_file" else saving.os, failing, fail)
    second, second_plan = pruned(Residual, seed=1)
    with pytest.raises(OSError, match="no space left"):
        save_pruned(second, second_plan, tmp_path / "net")
    assert [path.read_bytes() for path in written] == before
    assert sorted(tmp_path.iterdir()) == sorted(written)
