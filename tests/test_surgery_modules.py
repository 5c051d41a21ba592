"""Surgery on modules as people have them: hooks, wrappers, parametrisations, odd attributes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from infoslice.graph import trace
from infoslice.saving import load_pruned, save_pruned
from infoslice.surgery import plan
from networks import Residual, inputs, make
from oracle import assert_same, random_plan, silence

X = inputs(Residual)


def pruned(model, x, *, inplace=False, seed=1):
    """Cut at random; the result equals the silenced model."""
    pruning = random_plan(trace(model, x), seed)
    with torch.no_grad():
        expected = silence(model, pruning)(x)
        small = pruning.apply(model, inplace=inplace).model
        assert_same(small(x), expected, 1e-10)
    return small, pruning


# ---- hooks on tensors


def test_gradient_hooks_go_along_in_place():
    model = make(Residual)
    shapes = []
    handle = model.stem[0].weight.register_hook(lambda g: shapes.append(tuple(g.shape)))
    model.head.bias.register_post_accumulate_grad_hook(lambda p: shapes.append("head"))
    pruning = plan(trace(model, X), keep={"stem.0": [0, 3]})
    copied = pruning.apply(model).model
    copied(X).sum().backward()
    assert shapes == []  # as copy.deepcopy does
    pruning.apply(model, inplace=True)
    model(X).sum().backward()
    assert sorted(shapes, key=str) == [(2, 3, 3, 3), "head"]
    handle.remove()
    shapes.clear()
    model(X).sum().backward()
    assert shapes == ["head"]


def test_post_accumulate_hooks_are_refused_in_place():
    """As one uses to step an optimizer for each parameter during the backward."""
    model = make(Residual)
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}
    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    pruning = plan(trace(model, X), keep={"stem.0": [0, 3]})
    with pytest.raises(ValueError, match=r"no post-accumulate-grad hooks .* got one on stem\.0"):
        pruning.apply(model, inplace=True)
    assert model.stem[0].out_channels == 6
    pruning.apply(model).model(X).sum().backward()


# ---- where modules keep tensors


class Lists(nn.Module):
    """Calls its layers by way of lists, tuples, dicts and attributes that hold their tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.table = {"a": [(self.a.weight, "of a")], "bias": self.a.bias}
        object.__setattr__(self, "alias", self.b.weight)

    def forward(self, x):
        x = F.relu(F.linear(x, self.table["a"][0][0], self.table["bias"]))
        return self.c(F.relu(F.linear(x, self.alias, self.b.bias)))


@pytest.mark.parametrize("inplace", [False, True])
def test_tensors_kept_in_lists_and_attributes(inplace):
    x = torch.randn(4, 6, dtype=torch.float64)
    model = Lists().double()
    assert {group.name for group in trace(model, x).prunable} == {"a", "b"}
    small, _ = pruned(model, x, inplace=inplace)
    assert small.table["a"][0][0] is small.a.weight
    assert small.alias is small.b.weight


class Caching(nn.Module):
    """Keeps what it computes of its weights, as some vision transformers do in inference."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8) + 1)
        self.scale_cache = {}
        self.cache_sizes = {"a": 8}

    def forward(self, x):
        assert self.cache_sizes["a"] == 8
        if self.training or "cpu" not in self.scale_cache:
            self.scale_cache["cpu"] = self.scale.square()
        return self.b(F.relu(self.a(x)) * self.scale_cache["cpu"])


@pytest.mark.parametrize("filled", ["before", "between", "with gradients"])
@pytest.mark.parametrize("inplace", [False, True])
def test_caches_are_left_behind(inplace, filled):
    model, x = Caching().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    with torch.set_grad_enabled(filled == "with gradients"):
        _ = model(x) if filled != "between" else None
        graph = trace(model, x)
        assert [group.name for group in graph.prunable] == ["a"]
        model(x)
    pruning = plan(graph, keep={"a": [1, 2, 6]})
    twin = Caching().double().eval()
    twin.load_state_dict(model.state_dict())
    expected = silence(twin, pruning)(x)
    assert_same(pruning.apply(model, inplace=inplace).model(x), expected, 1e-12)


class Parameters(nn.Module):
    """In a list and in a dict, buffers that are not saved, and extra state."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(8, 6), torch.randn(7, 8), torch.randn(3, 7)])
        self.biases = nn.ParameterDict({"a": torch.randn(8), "b": torch.randn(7)})
        self.register_buffer("scale", torch.rand(7) + 1, persistent=False)
        self.note = {"trained": 3}

    def forward(self, x):
        x = F.relu(F.linear(x, self.matrices[0], self.biases["a"]))
        return F.linear(F.relu(F.linear(x, self.matrices[1], self.biases["b"])), self.matrices[2])

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, state):
        self.note = state


@pytest.mark.parametrize("inplace", [False, True])
def test_parameter_lists_dicts_and_extra_state(inplace):
    small, _ = pruned(Parameters().double(), torch.randn(4, 6).double(), inplace=inplace)
    assert type(small.matrices) is nn.ParameterList
    assert small.note == {"trained": 3}
    assert small.state_dict()["_extra_state"] == {"trained": 3}
    assert len(small.matrices[0]) == len(small.biases["a"])
    assert small._non_persistent_buffers_set == {"scale"}


class Sized(nn.Module):
    """Its sizes are properties; one can be set, one cannot."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.width = outputs

    @property
    def in_features(self):
        return self.weight.shape[1]

    @property
    def out_features(self):
        return self.width

    @out_features.setter
    def out_features(self, width):
        self.width = width

    def forward(self, x):
        return F.linear(x, self.weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_sizes_that_are_properties(inplace):
    model = nn.Sequential(Sized(6, 8), nn.ReLU(), Sized(8, 7), nn.ReLU(), Sized(7, 3)).double()
    small, _ = pruned(model, torch.randn(4, 6).double(), inplace=inplace)
    for layer in (small[0], small[2], small[4]):
        assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)


def test_attributes_of_parameters():
    model = make(Residual)
    model.head.weight.rate, model.head.bias.rate = 0.5, 0.1
    pruning = plan(trace(model, X), keep={"blocks.1.b.0": [0, 3]})
    for inplace in (False, True):
        small = pruning.apply(copy_of(model), inplace=inplace).model
        assert (small.head.weight.rate, small.head.bias.rate) == (0.5, 0.1)
    model.head.weight.main_grad = torch.zeros(4, 9)
    with pytest.raises(ValueError, match=r"head\.weight\.main_grad of shape \(4, 9\)"):
        pruning.apply(model)


def copy_of(model):
    """copy.deepcopy forgets the attributes of parameters."""
    result = copy.deepcopy(model)
    for ours, theirs in zip(result.parameters(), model.parameters(), strict=True):
        vars(ours).update(vars(theirs))
    return result


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    pruning = plan(trace(twin, torch.zeros(1, 6)), keep={"0": [2, 3]})
    with pytest.raises(ValueError, match=r"initialised parameters, got 0\.weight of a lazy module"):
        pruning.apply(model)
    model(torch.zeros(1, 6))
    assert pruning.apply(model).model[0].out_features == 2


class Asserts(nn.Module):
    """Insists on the size it was made with."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.a(x)
        if y.shape[-1] != 8:
            raise AssertionError
        return self.b(y)


def test_a_module_that_asserts_its_size():
    model, x = Asserts(), torch.zeros(1, 6)
    with pytest.raises(ValueError, match="group a: raises AssertionError"):
        plan(trace(model, x), keep={"a": [0]}).apply(model, inplace=True)
    assert model.a.out_features == 8


def test_a_cut_in_inference_mode_can_be_trained():
    model = make(Residual)
    with torch.inference_mode():
        small, pruning = pruned(model, X)
        pruning.apply(model, inplace=True)
    for net in (small, model):
        net(X).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


# ---- weights that are computed


def convolutions(wrap, places):
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 2)).double()
    for place in places:
        model[place] = wrap(model[place])
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        (parametrizations.weight_norm, "parametrised"),
        (parametrizations.spectral_norm, "parametrised"),
        (nn.utils.spectral_norm, "mv in '0'"),
        (nn.utils.weight_norm, None),
    ],
    ids=["weight_norm", "spectral_norm", "old spectral_norm", "old weight_norm"],
)
def test_normalised_weights(wrap, why):
    """Left whole or cut exactly, after a forward with gradients too: that leaves its weight."""
    model = convolutions(wrap, [0])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x)
    model.eval()(x)
    graph = trace(model, x)
    assert {g.name for g in graph.prunable} == ({"2", "4"} if why else {"0", "2", "4"})
    assert why is None or why in graph.whole["0"]
    small = random_plan(graph, 1).apply(model).model
    small.train()(x).sum().backward()
    small.eval()
    with torch.no_grad():
        model(x)  # now it can be copied
        small, pruning = pruned(model, x)
        expected = small(x)
        pruning.apply(model, inplace=True)
        assert torch.equal(model(x), expected)
    assert [name for name, _ in small[0].named_parameters()] == [
        name for name, _ in model[0].named_parameters()
    ]


def test_a_parametrisation_taken_off_and_put_back():
    """The way round that the reason names."""
    model = convolutions(parametrizations.weight_norm, [0, 2, 4])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    assert not graph.prunable
    assert "remove_parametrizations first" in graph.whole["2.parametrizations.weight"]
    for place in (0, 2, 4):
        parametrize.remove_parametrizations(model[place], "weight")
    small, _ = pruned(model, x, inplace=True)
    before = small(x)
    for place in (0, 2, 4):
        parametrizations.weight_norm(small[place])
    assert_same(small(x), before, 1e-12)


# ---- wrapped, sharded, quantised


@pytest.mark.parametrize("place", ["blocks", "blocks.0"])
def test_compiled_submodules_are_cut(place):
    torch._dynamo.reset()
    model = make(Residual)
    model.set_submodule(place, torch.compile(model.get_submodule(place), backend="eager"))
    with torch.no_grad():
        model(X)
    small, pruning = pruned(model, X)
    assert {name.replace("_orig_mod.", "") for name in pruning.keep} == {
        group.name for group in trace(make(Residual), X).prunable
    }
    pruning.apply(model, inplace=True)
    with torch.no_grad():
        assert_same(model(X), small(X), 1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_submodules_are_refused_by_name():
    model = make(Residual)
    pruning = plan(trace(model, X), keep={"stem.0": [0]})
    model.head = torch.jit.script(model.head)
    with pytest.raises(TypeError, match=r"trace: .*got 'head' that is scripted; put the original"):
        trace(model, X)
    with pytest.raises(TypeError, match=r"validate: .*got 'head' that is scripted"):
        pruning.apply(model)


@pytest.fixture
def group_of_one():
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_distributed_and_parallel_wrappers(group_of_one):
    model = make(Residual)
    pruning = random_plan(trace(model, X), 1, least=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(X).sum().backward()
    for wrapper in (wrapped, nn.DataParallel(model)):
        kind = type(wrapper).__name__
        with pytest.raises(TypeError, match=rf"trace: .*got {kind}; pass model\.module"):
            trace(wrapper, X)
        with pytest.raises(TypeError, match=rf"validate: .*got {kind}; pass model\.module"):
            pruning.apply(wrapper, inplace=True)
    expected = silence(model, pruning)(X)
    pruning.apply(wrapped.module, inplace=True)
    again = nn.parallel.DistributedDataParallel(wrapped.module)
    assert_same(again(X), expected, 1e-10)
    again.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sharded_modules_are_refused(group_of_one):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    model = make(Residual)
    pruning = random_plan(trace(model, X), 1)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fsdp.fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match=r"got FSDPModule; trace and cut .* before fully_shard"):
        trace(model, X)
    with pytest.raises(TypeError, match="got FSDPModule"):
        pruning.apply(model, inplace=True)


class Packed(nn.Parameter):
    """As libraries for quantisation do: bytes that stand for other numbers."""


class Scaled(torch.Tensor):
    """A tensor of another meaning."""


@pytest.mark.parametrize("kind", ["parameter", "tensor"])
def test_tensors_of_other_kinds_are_refused_by_name(kind):
    model = make(Residual)
    pruning = plan(trace(model, X), keep={"blocks.1.b.0": [0, 3]})
    untouched = plan(trace(model, X), keep={"stem.0": [0, 3]})
    weight = model.head.weight.detach()
    if kind == "parameter":
        model.head.weight = Packed(weight)
    else:
        model.head.weight = nn.Parameter(weight.as_subclass(Scaled))
    graph = trace(model, X)
    assert "sharded or quantised" in graph.group("blocks.1.b.0").reason
    name = type(model.head.weight).__name__
    for inplace in (False, True):
        with pytest.raises(TypeError, match=rf"got head\.weight of type {name} \(sharded or quant"):
            pruning.apply(model, inplace=inplace)
    weight = model.head.weight
    untouched.apply(model, inplace=True)
    assert model.head.weight is weight
    assert model.stem[0].out_channels == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor")
def test_dynamically_quantised_layers_stay_whole():
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)]
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(*layers), {"4"})
    x = torch.randn(5, 6)
    graph = trace(model, x)
    assert [group.name for group in graph.prunable] == ["0"]
    assert "quantized::linear_dynamic in '4'" in graph.group("2").reason
    small = plan(graph, keep={"0": [1, 2, 5]}).apply(model).model
    assert small(x).shape == (5, 3)


# ---- on disk


def test_extra_state_is_not_saved_in_silence(tmp_path):
    model = Parameters()
    pruning = random_plan(trace(model, torch.zeros(2, 6)), 1)
    with pytest.raises(TypeError, match="got _extra_state of type dict"):
        save_pruned(pruning.apply(model).model, pruning, tmp_path / "net")


def test_loading_into_the_precision_of_the_file(tmp_path):
    model = make(Residual, dtype=torch.float32)
    pruning = random_plan(trace(model, X.float()), 1)
    small = pruning.apply(model).model
    save_pruned(small.to(torch.bfloat16), pruning, tmp_path / "net")
    loaded = load_pruned(Residual, tmp_path / "net").eval()
    assert loaded.head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded(X.bfloat16()), small(X.bfloat16()))
    # Weights alone fit a model cut in another precision.
    other = pruning.apply(make(Residual, dtype=torch.float32)).model
    other.load_state_dict(loaded.state_dict())
    assert other.head.weight.dtype == torch.float32
    assert torch.equal(other.head.weight, loaded.head.weight.float())
