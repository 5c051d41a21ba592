"""A network on another device is pruned there: nothing that is made meets a tensor of the CPU.

No GPU is needed (see ``far.py``); what its kernels compute is proved elsewhere.
"""

import copy

import pytest
import torch
from torch import nn

import infoslice
from far import Far, moved, second_device
from infoslice.criteria import CRITERIA

OPTIONS = {
    "uniform": {"allocation": "uniform"},
    "sensitivity": {"allocation": "sensitivity"},
    "swaps": {"refinement": "swaps"},
    "bias": {"compensation": "bias"},
    "least squares": {"compensation": ("least_squares", "batch_norm")},
    "merge": {"compensation": "merge", "criterion": "l2_norm"},
    "none": {"compensation": "none"},
    "post": {"target": "post"},
    "layer": {"injection": "layer"},
    "copula": {"transform": "copula"},
    "weights": {"data_weights": torch.arange(24.0)},
    "corrected": {"criterion_options": {"bias_correction": True}},
    "shrunk": {"criterion_options": {"shrinkage": "ledoit_wolf"}, "sampling_errors": True},
    **{score: {"criterion_options": {"score": score}} for score in ("marginal", "output")},
    **{name: {"criterion": name} for name in CRITERIA},
}


@pytest.fixture(scope="module", autouse=True)
def without_cudnn():
    """A torch that has it calls its batch norm by name, which does not run on what is near."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(20, 8), nn.GELU(), nn.Linear(8, 4),
    ).double().eval().requires_grad_(False)  # fmt: skip
    example = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    return model, example, infoslice.trace(model, example)


@pytest.mark.parametrize("name", OPTIONS)
def test_chooses_and_refits_as_on_the_cpu(network, name):
    model, example, graph = network
    data = torch.randn(24, 2, 8, 8, dtype=torch.float64)
    options = {"graph": graph, "show_progress": False, "batch_size": 10, **OPTIONS[name]}
    here = infoslice.prune(model, example, data=data, **options)
    with second_device():
        there = infoslice.prune(
            moved(copy.deepcopy(model), Far), Far(example), data=Far(data), **options
        )
    assert {k: v.tolist() for k, v in here.plan.keep.items()} == {
        k: v.tolist() for k, v in there.plan.keep.items()
    }
    assert here.plan.keep
    assert there.report.perturbation == here.report.perturbation
    state = there.model.state_dict()
    for key, tensor in here.model.state_dict().items():
        torch.testing.assert_close(state[key].near, tensor)


@pytest.mark.parametrize("criterion", ["causal", "greedy_mi", "obs", "flap"])
def test_curvatures_are_taken_to_the_layers(network, criterion, monkeypatch):
    model, example, graph = network

    def given(model, inputs, layers, **options):  # the gradients themselves are not for this device
        sizes = (model.get_submodule(name).weight.shape[0] for name in layers)
        roots = (torch.randn(m, m, generator=torch.Generator().manual_seed(m)) for m in sizes)
        return {n: (r @ r.T).double() for n, r in zip(layers, roots, strict=True)}

    monkeypatch.setattr("infoslice.measured_network.output_curvature", given)
    data = torch.randn(24, 2, 8, 8, dtype=torch.float64)
    options = {
        "graph": graph, "show_progress": False, "criterion": criterion, "compensation": "none",
        "criterion_options": {"curvature": "cross_entropy"},
    }  # fmt: skip
    here = infoslice.prune(model, example, data=data, **options)
    with second_device():
        there = infoslice.prune(
            moved(copy.deepcopy(model), Far), Far(example), data=Far(data), **options
        )
    assert {k: v.tolist() for k, v in here.plan.keep.items()} == {
        k: v.tolist() for k, v in there.plan.keep.items()
    }


@pytest.mark.parametrize("perturbation", ["gaussian", "uniform"])
def test_noise_is_made_there(network, perturbation):
    model, example, graph = network
    with second_device():
        found = infoslice.prune(
            moved(copy.deepcopy(model), Far), Far(example), perturbation=perturbation, samples=16,
            graph=graph, show_progress=False,
        )  # fmt: skip
    assert found.plan.keep


@pytest.mark.parametrize("perturbation", ["tokens", "generated"])
def test_tokens_are_made_there(perturbation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 20))
    model.double().eval().requires_grad_(False)
    example = torch.zeros(1, 6, dtype=torch.long)
    graph = infoslice.trace(model, example)
    options = {
        "graph": graph, "show_progress": False, "perturbation": perturbation, "samples": 32
    }  # fmt: skip
    here = infoslice.prune(model, example, **options)
    with second_device():
        there = infoslice.prune(moved(copy.deepcopy(model), Far), Far(example), **options)
    assert here.plan.keep["1"].tolist() == there.plan.keep["1"].tolist()


def test_what_mixes_devices_is_refused():
    near = torch.ones(3)
    with second_device():
        there = Far(near.clone())
        there += 1
        assert there.near.tolist() == [2, 2, 2]
        assert (there * torch.tensor(2.0)).tolist() == [4, 4, 4]  # a number without dimensions
        assert there[torch.tensor([0, 2])].tolist() == [2, 2]
        assert torch.zeros(3, device=there.device).add(there).tolist() == [2, 2, 2]
        assert type(there.cpu()) is torch.Tensor
        for mix in (
            lambda: there + near,
            lambda: near.mul_(there),
            lambda: near[there > 0],
            lambda: torch.cat([near, there]),
            lambda: there @ near,
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(RuntimeError, match="for generator"):
            torch.randn(3, generator=torch.Generator(), device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
