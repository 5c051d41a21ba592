"""Plans: what they accept, what a cut keeps of the model, and that a failure changes nothing."""

from __future__ import annotations

import copy
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoslice import ops
from infoslice.graph import trace
from infoslice.surgery import PruningPlan, plan
from networks import MODELS, Inverted, Residual, Tied, inputs, make
from oracle import assert_same, random_plan, silence


@pytest.fixture
def residual():
    model = make(Residual, dtype=torch.float32)
    return model, trace(model, inputs(Residual, torch.float32))


def snapshot(model):
    state = model.state_dict(keep_vars=True)
    return {name: (id(tensor), tensor.detach().clone()) for name, tensor in state.items()}


def assert_unchanged(model, before):
    after = snapshot(model)
    assert list(after) == list(before)
    for name, (identity, tensor) in before.items():
        assert after[name][0] == identity
        assert torch.equal(after[name][1], tensor)


# ---- plans


def test_keep_and_remove_say_the_same(residual):
    _, graph = residual
    keep = plan(graph, keep={"stem.0": [0, 2, 5]}).keep["stem.0"]
    assert keep.dtype == torch.int64
    assert keep.tolist() == [0, 2, 5]
    for removed in ([4, 1, 3], np.array([3, 4, 1]), torch.tensor([1, 3, 4], dtype=torch.int32)):
        assert torch.equal(plan(graph, remove={"stem.0": removed}).keep["stem.0"], keep)
    mixed = plan(graph, keep={"stem.0": range(3)}, remove={"blocks.0.a.0": (0,)})
    assert [len(k) for k in mixed.keep.values()] == [3, 5]


def test_the_plan_owns_its_indices(residual):
    _, graph = residual
    given = torch.tensor([0, 2])
    made = plan(graph, keep={"stem.0": given})
    given[0] = 1
    assert made.keep["stem.0"].tolist() == [0, 2]


def test_nothing_removed_is_no_edit(residual):
    model, graph = residual
    for made in (
        plan(graph),
        plan(graph, keep={"stem.0": range(6)}),
        plan(graph, remove={"stem.0": []}),
    ):
        assert made.keep == {}
        result = made.apply(model)
        assert result.edits == ()
        assert result.model is not model
        for a, b in zip(model.parameters(), result.model.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"keep": {"stem": [0]}},
            ValueError,
            r"keep: expected groups among \[stem\.0, \.\.\.\], got 'stem'",
        ),
        ({"keep": {3: [0]}}, ValueError, r"among \[.*, \.\.\.\], got 3"),
        (
            {"remove": {"blocks.0.b.0": [0]}},
            ValueError,
            r"'blocks\.0\.b\.0', a layer that writes the channels of the group 'stem\.0'",
        ),
        ({"keep": [0]}, TypeError, "keep: expected a mapping .* got list"),
        (
            {"remove": {"head": [0]}},
            ValueError,
            "expected prunable groups, got 'head'.*model output",
        ),
        ({"keep": {"stem.0": [0]}, "remove": {"stem.0": [0]}}, ValueError, "each group once"),
        ({"keep": {"stem.0": [0, 6]}}, ValueError, r"channels in \[0, 6\), got values from 0 to 6"),
        (
            {"remove": {"stem.0": [-1]}},
            ValueError,
            r"channels in \[0, 6\), got values from -1 to -1",
        ),
        ({"keep": {"stem.0": [2, 1]}}, ValueError, r"sorted, unique channels, got \[2, 1\]"),
        ({"keep": {"stem.0": [1, 1]}}, ValueError, r"sorted, unique channels, got \[1, 1\]"),
        ({"remove": {"stem.0": [1, 1]}}, ValueError, r"unique channels, got \[1, 1\]"),
        ({"keep": {"stem.0": []}}, ValueError, "at least one channel to be left"),
        ({"remove": {"stem.0": range(6)}}, ValueError, "at least one channel to be left"),
        ({"keep": {"stem.0": [[0, 1]]}}, ValueError, r"one dimension, got shape \(1, 2\)"),
        ({"keep": {"stem.0": [0.5]}}, TypeError, "integers, got torch.float32"),
        ({"keep": {"stem.0": [True] * 6}}, TypeError, "integers, got torch.bool"),
        ({"keep": {"stem.0": "abc"}}, TypeError, "integers, got str"),
        ({"keep": {"stem.0": None}}, TypeError, "integers, got NoneType"),
    ],
)
def test_bad_plans(residual, arguments, error, message):
    model, graph = residual
    with pytest.raises(TypeError, match=r"graph: expected what infoslice\.trace returns"):
        plan(model, **arguments)
    with pytest.raises(error, match=message):
        plan(graph, **arguments)


def test_explain_and_json(residual):
    model, graph = residual
    made = random_plan(graph, 0, least=2)
    text = made.explain()
    left = len(made.keep["stem.0"])
    assert f"stem.0: 6 -> {left} channels" in text
    assert f"read by blocks.0.a.0.weight axis 1: 6 -> {left}" in text
    smaller = made.apply(model).model
    count = sum(t.numel() for t in smaller.state_dict().values())
    assert f" -> {count} (-" in text
    again = PruningPlan.from_json(made.to_json())
    assert again.groups == made.groups
    assert again.tensors == made.tensors
    assert again.inputs == made.inputs
    assert again.to_json() == made.to_json()
    assert all(torch.equal(again.keep[name], kept) for name, kept in made.keep.items())
    for a, b in zip(again.apply(model).model.parameters(), smaller.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "{}",
        lambda text: "no json",
        lambda text: "[1]",
        lambda text: text.replace("infoslice.plan", "other"),
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"keep": [0, 1]', '"keep": [1, 0]'),
        lambda text: text.replace('"keep": [0, 1]', '"keep": [0, 77]'),
        lambda text: text.replace('"torch.float32"', '"nn"').replace('"float32"', '"nn"'),
        lambda text: text.replace('"offset": 0', '"offset": 99'),
        lambda text: text.replace('"index_map"', '"map"'),
    ],
)
def test_bad_json(residual, change):
    _, graph = residual
    text = plan(graph, keep={"stem.0": [0, 1]}).to_json()
    assert change(text) != text
    with pytest.raises(
        ValueError, match=r"from_json: argument text: expected infoslice\.plan version 1"
    ):
        PruningPlan.from_json(change(text))


def test_a_forged_json_plan_cuts_nothing(residual):
    """Index maps that are possible but wrong for the model are found by tracing it again."""
    model, graph = residual
    text = plan(graph, keep={"blocks.1.b.0": [0, 1]}).to_json()
    forged = text.replace(
        '"tensor": "head.weight", "axis": 1', '"tensor": "blocks.2.a.0.weight", "axis": 0'
    )
    assert forged != text
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"the group blocks\.1\.b\.0 as planned"):
        PruningPlan.from_json(forged).apply(model, inplace=True)
    text = plan(trace(Thresholds(""), torch.zeros(1, 4)), keep={"a": [1]}).to_json()
    with pytest.raises(ValueError, match="expected the group a, got one left whole: softmax"):
        PruningPlan.from_json(text).apply(Thresholds("softmax"))
    assert_unchanged(model, before)


def test_json_refuses_unusual_inputs():
    class Inputs(tuple):
        __slots__ = ()

    linear = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    graph = trace(linear, torch.zeros(2, 3))
    made = plan(graph, remove={"0": [1]})
    odd = PruningPlan(made.keep, made.groups, made.tensors, (Inputs(), {}), made.graph)
    with pytest.raises(TypeError, match="example inputs: expected tensors, numbers, strings"):
        odd.to_json()


# ---- what a cut keeps


def test_edits_tell_old_from_new():
    for kind in (Inverted, Tied):
        model = make(kind)
        result = random_plan(trace(model, inputs(kind)), 1).apply(model)
        old, new = model.state_dict(), result.model.state_dict()
        rebuilt = dict(old)
        for edit in result.edits:
            assert edit.old_shape == tuple(old[edit.tensor].shape)
            assert edit.new_shape == tuple(new[edit.tensor].shape)
            rebuilt[edit.tensor] = rebuilt[edit.tensor].index_select(edit.axis, edit.keep)
        ties = {"second.weight": "first.weight"} if kind is Tied else {}
        for name, tensor in new.items():
            assert torch.equal(tensor, rebuilt[ties.get(name, name)])


@pytest.mark.parametrize("kind", MODELS)
def test_sizes_are_repaired(kind):
    """Every module says of itself what its weights are."""
    model = make(kind)
    small = random_plan(trace(model, inputs(kind)), 2).apply(model).model
    for module in small.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            axes = (1, 0) if module.transposed else (0, 1)
            out = module.weight.shape[axes[0]] * (module.groups if module.transposed else 1)
            into = module.weight.shape[axes[1]] * (1 if module.transposed else module.groups)
            assert (module.out_channels, module.in_channels) == (out, into)
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            assert module.embedding_dim == module.weight.shape[1]
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
            assert module.normalized_shape == tuple(module.weight.shape)
        elif isinstance(module, nn.GroupNorm):
            assert module.num_channels == len(module.weight)
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)
        elif hasattr(module, "num_features") and module.weight is not None:
            assert module.num_features == len(module.weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_flags_formats_and_attributes_are_kept(inplace):
    model = make(Residual, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    model.train()
    model.blocks[0].eval()
    model.stem[0].weight.requires_grad_(False)
    model.blocks[1].a[1].bias.requires_grad_(False)
    model.head.weight.no_weight_decay = True
    calls = []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    model.head.weight.grad = torch.ones_like(model.head.weight)
    graph = trace(model, inputs(Residual, torch.bfloat16))
    untouched = snapshot(model)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    result = random_plan(graph, 4).apply(model, inplace=inplace)
    assert (result.model is model) == inplace
    if not inplace:
        assert_unchanged(model, untouched)
        assert model.head.weight.grad is not None
    small = result.model
    assert {name: p.requires_grad for name, p in small.named_parameters()} == before
    assert [module.training for module in small.modules()] == modes
    assert small.head.weight.no_weight_decay
    assert small.head.weight.grad is None
    cut = {edit.tensor for edit in result.edits}
    for name, tensor in small.state_dict().items():
        assert tensor.dtype == untouched[name][1].dtype
        if name not in cut:
            continue
        if tensor.dim() == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        else:
            assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    calls.clear()
    small(inputs(Residual, torch.bfloat16))
    assert calls == [1]


@pytest.mark.parametrize("inplace", [False, True])
def test_ties_stay_ties(inplace):
    model = make(Tied)
    small = plan(trace(model, inputs(Tied)), remove={"weight": [0, 4]}).apply(
        model, inplace=inplace
    )
    assert small.model.first.weight is small.model.second.weight
    assert small.model.first.weight.shape == (7, 7)
    assert small.model.first.bias is not small.model.second.bias


def test_copies_share_nothing(residual):
    model, graph = residual
    small = random_plan(graph, 1).apply(model).model
    ours = {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
    theirs = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not ours & theirs


def test_half_precision_equals_the_oracle():
    for dtype in (torch.float16, torch.bfloat16):
        model = make(Inverted, dtype=dtype)
        x = inputs(Inverted, dtype)
        pruning = random_plan(trace(model, x), 1)
        small = pruning.apply(model).model
        with torch.no_grad():  # in double, where rounding cannot hide anything
            ours, whole = small.double()(x.double()), copy.deepcopy(model).double()
            assert_same(ours, silence(whole, pruning)(x.double()), 1e-10)


def test_meta_device():
    with torch.device("meta"):
        model = Residual()
    graph = trace(model, torch.empty(2, 3, 8, 8, device="meta"))
    small = plan(graph, remove={"stem.0": [0, 1]}).apply(model).model
    assert small.stem[0].weight.shape == (4, 3, 3, 3)
    assert all(p.device.type == "meta" for p in small.parameters())


def test_a_trained_network_of_digits():
    """scikit-learn's digits: every convolution cut, and trained on after the cut."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip

    def train(net, steps):
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        net.train()
        for step in range(steps):
            rows = torch.arange(128) * 13 + step * 131
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows % 1500]), y[rows % 1500]).backward()
            optimizer.step()
        return net.eval()

    def accuracy(net):
        with torch.no_grad():
            return (net(x[1500:]).argmax(1) == y[1500:]).double().mean().item()

    train(model, 60)
    assert accuracy(model) > 0.85
    graph = trace(model, x[:2])
    norms = {
        g.name: model.get_submodule(g.name).weight.abs().flatten(1).sum(1) for g in graph.prunable
    }
    keep = {
        name: norm.topk(len(norm) * 3 // 4).indices.sort().values for name, norm in norms.items()
    }
    pruning = plan(graph, keep=keep)
    small = pruning.apply(model).model
    with torch.no_grad():
        assert_same(small(x[1500:]), silence(model, pruning)(x[1500:]), 1e-5)
    train(small, 40)
    assert accuracy(small) > 0.85
    assert sum(p.numel() for p in small.parameters()) < 0.65 * sum(
        p.numel() for p in model.parameters()
    )


# ---- refused, and nothing changed


def differently_shaped(model):
    model.head = nn.Linear(9, 5)


def renamed(model):
    model.tail = model.head
    del model.head


def retyped(model):
    model.head.half()


def untied_memory(model):
    model.blocks[0].a[1].weight.data = model.stem[1].weight.data


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (differently_shaped, ValueError, r"expected head\.weight of shape \(4, 9\), got \(5, 9\)"),
        (renamed, ValueError, r"got a model without \['head\.bias', 'head\.weight'\] and with"),
        (retyped, TypeError, r"expected head\.weight of torch\.float32, got torch\.float16"),
        (untied_memory, ValueError, "that only share memory"),
    ],
)
def test_another_model_is_refused(residual, change, error, message):
    model, graph = residual
    made = random_plan(graph, 0, least=2)
    change(model)
    before = snapshot(model)
    for inplace in (False, True):
        with pytest.raises(error, match=message):
            made.apply(model, inplace=inplace)
    assert_unchanged(model, before)


@pytest.fixture
def mesh():
    """A process group of one."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_tensors_are_refused_by_name(residual, mesh):
    from torch.distributed.tensor import Replicate, distribute_tensor

    model, graph = residual
    made = plan(graph, keep={"blocks.1.b.0": [0, 1, 2]})
    weight = distribute_tensor(model.head.weight.detach(), mesh, [Replicate()])
    model.head.weight = nn.Parameter(weight)
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"head\.weight of type .* \(sharded or quantised\)"):
        made.apply(model, inplace=True)
    assert model.head.weight.shape == (4, 9)
    assert {name: i for name, (i, _) in snapshot(model).items()} == {
        name: i for name, (i, _) in before.items()
    }
    assert (
        "sharded or quantised"
        in trace(model, inputs(Residual, torch.float32)).group("blocks.1.b.0").reason
    )


class Thresholds(nn.Module):
    """Computes something else when it has fewer channels."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.kind == "branch" and self.a.out_features < 6:
            x = x * 2
        if self.kind == "other operator":
            x = x.sigmoid() if self.a.out_features < 6 else x.tanh()
        if self.kind == "softmax":
            x = x.softmax(-1)
        if self.kind == "output":
            return self.b(x)[:, : self.a.out_features // 4]
        return self.b(x)


@pytest.mark.parametrize("route", ["graph", "json"])
@pytest.mark.parametrize("kind", ["branch", "other operator", "output"])
def test_a_forward_that_changes_with_its_size_is_refused(kind, route):
    model = Thresholds(kind)
    graph = trace(model, torch.zeros(2, 4))
    made = plan(graph, keep={"a": [0, 3, 4, 7]})
    if route == "json":
        made = PruningPlan.from_json(made.to_json())
    before = snapshot(model)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="smaller copy that does not run alike: group a: "):
            made.apply(model, inplace=inplace)
    assert_unchanged(model, before)
    assert model.a.out_features == 8


def test_only_the_failing_group_is_named(residual):
    model = Thresholds("branch")
    model.b = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(model, torch.zeros(2, 4))
    made = plan(graph, remove={"a": [0, 1, 7], "b.0": [1]})
    with pytest.raises(ValueError, match="does not run alike: group a: calls") as caught:
        made.apply(model)
    assert "group b.0" not in str(caught.value)


def test_uncopyable_model(residual):
    model, graph = residual
    made = plan(graph, remove={"stem.0": [1]})
    model.file = (i for i in range(3))
    with pytest.raises(ValueError, match=r"copy\.deepcopy can copy.*drop what cannot be copied"):
        made.apply(model)
    assert model.stem[0].out_channels == 6


# ---- memory


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Linear(64, 64) for _ in range(8)))


def in_place_parts(monkeypatch, model, fail_at=None):
    """Bytes of the model's tensors, old and new, at every call that makes new ones."""
    monkeypatch.setattr("infoslice.replacement._BATCH", 1)
    alive = [weakref.ref(tensor) for tensor in model.parameters()]
    calls = []
    slice_channels = ops.slice_channels

    def watched(tensors, dims, keep):
        calls.append(sum(p.nbytes for p in (ref() for ref in alive) if p is not None))
        if len(calls) - 1 == fail_at:
            raise MemoryError
        made = slice_channels(tensors, dims, keep)
        calls[-1] += sum(tensor.nbytes for tensor in made)
        return made

    monkeypatch.setattr("infoslice.replacement.ops.slice_channels", watched)
    return calls


def test_in_place_holds_one_part_besides_the_old_weights(monkeypatch):
    model = Wide()
    graph = trace(model, torch.zeros(1, 64))
    calls = in_place_parts(monkeypatch, model)
    whole = sum(p.nbytes for p in model.parameters())
    cut = plan(graph, keep={group.name: range(32) for group in graph.prunable})
    cut.apply(model, inplace=True)
    assert len(calls) > 4
    # The first makes most; what is replaced is free when the next is made.
    assert calls[0] == whole + 64 * 32 * 4
    assert all(later < earlier for earlier, later in pairwise(calls))


def test_out_of_memory_leaves_the_model_unchanged(monkeypatch):
    model = Wide()
    graph = trace(model, torch.zeros(1, 64))
    before = snapshot(model)
    in_place_parts(monkeypatch, model, fail_at=0)
    cut = plan(graph, keep={group.name: range(32) for group in graph.prunable})
    with pytest.raises(MemoryError):
        cut.apply(model, inplace=True)
    assert_unchanged(model, before)
    assert [layer.out_features for layer in model] == [64] * 8
