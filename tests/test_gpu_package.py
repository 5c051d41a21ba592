"""The package on a GPU: torch's own checks of every op, a second device, and whole models."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import infoslice
import networks
import test_gpu_cholesky
import test_gpu_covariance
import test_gpu_gaussian_mi
import test_gpu_greedy
import test_gpu_precision
import test_gpu_slice_channels
import test_gpu_spanning_tree
from gpu_checks import HOST, Cuda, check_values
from infoslice import ops
from oracle import random_plan
from test_registry import NATIVE, SAMPLES, SHAPE_CHANGING, Recorder

CASES = [
    case
    for module in (
        test_gpu_cholesky, test_gpu_covariance, test_gpu_gaussian_mi, test_gpu_greedy,
        test_gpu_precision, test_gpu_slice_channels, test_gpu_spanning_tree,
    )
    for case in (*module.CASES, *getattr(module, "IN_PLACE", ()))
]  # fmt: skip
ONE_OF_EACH = list({case.op: case for case in CASES if case.against_reference}.values())


def test_there_are_cases_of_every_op():
    assert {case.op for case in ONE_OF_EACH} == set(NATIVE)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_on_a_second_device(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    assert torch.cuda.current_device() == 0
    check_values(case, Cuda(1))
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NATIVE)
def test_opcheck(name):
    for args, kwargs in copy.deepcopy(SAMPLES[name]):
        args = [
            argument
            if i in HOST.get(name, ())
            else torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, argument)
            for i, argument in enumerate(args)
        ]
        with Recorder() as recorder:
            getattr(ops, name)(*args, **kwargs)
        tests = ("test_schema", "test_autograd_registration")
        traced = {} if name not in SHAPE_CHANGING else {"test_utils": tests}
        for func, raw in recorder.calls:
            torch.library.opcheck(func, raw, **traced)


NETWORKS = [networks.Inverted, networks.PlainCNN, networks.Residual, networks.SqueezeExcite]


def trained(make):
    """In double, where two devices choose alike."""
    torch.manual_seed(3)
    model = make().double().train()
    with torch.no_grad():
        model(torch.randn(64, *make.shape[1:], dtype=torch.float64))
    return model.eval(), torch.randn(make.shape, dtype=torch.float64)


def on_devices(*values):
    """All of these on a GPU, and the first one on the CPU."""
    on_cpu, *rest = [pytest.param("cpu", *values[0])], *values
    return on_cpu + [pytest.param("cuda", *value, marks=pytest.mark.gpu) for value in rest]


@pytest.mark.parametrize(
    ("device", "make", "allocation"),
    on_devices(*((make, way) for make in NETWORKS for way in ("global", "uniform"))),
)
def test_pruning_chooses_and_refits_as_on_the_cpu(device, make, allocation):
    model, example = trained(make)
    options = {
        "samples": 64, "perturbation": "gaussian", "show_progress": False, "allocation": allocation,
    }  # fmt: skip
    here = infoslice.prune(model, example, **options)
    there = infoslice.prune(copy.deepcopy(model).to(device), example.to(device), **options)
    assert {k: v.tolist() for k, v in here.plan.keep.items()} == {
        k: v.tolist() for k, v in there.plan.keep.items()
    }
    state = there.model.state_dict()
    for name, tensor in here.model.state_dict().items():
        assert state[name].device.type == device
        torch.testing.assert_close(state[name].cpu(), tensor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("device", "make"), on_devices(*((make,) for make in NETWORKS)))
def test_surgery_cuts_the_same_weights(device, make):
    model, example = trained(make)
    plan = random_plan(infoslice.trace(model, example), seed=5)
    here, _ = plan.apply(model)
    there, _ = plan.apply(copy.deepcopy(model).to(device))
    state = there.state_dict()
    for name, tensor in here.state_dict().items():
        assert state[name].device.type == device
        assert torch.equal(state[name].cpu(), tensor)


@pytest.mark.parametrize(("device", "criterion"), on_devices(("causal",), ("l1_norm",)))
def test_the_default_pipeline_in_float32(device, criterion):
    """Matched noise: a fit of many steps, which no two devices walk alike."""
    model, example = (x.float().to(device) for x in trained(networks.Residual))
    flags = {"enabled": True, "allow_tf32": False}
    with torch.backends.cudnn.flags(**flags) if device == "cuda" else nullcontext():
        result = infoslice.prune(
            model, example, samples=64, match_steps=5, show_progress=False, criterion=criterion
        )
        assert result.model(example).isfinite().all()
    assert result.report.after.parameters < result.report.before.parameters
    assert all(p.device.type == device for p in result.model.parameters())
