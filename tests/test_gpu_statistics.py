"""Statistics of models on a GPU against those on the CPU, and reduced by NCCL."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from infoslice.distributed import all_reduce
from infoslice.perturbation import Inputs
from infoslice.statistics import Accumulator, collect

OPTIONS = {
    "full": {"sampling_errors": True, "outputs": {"0": nn.Identity()}},
    "weighted": {"weights": torch.tensor([1, 0.5, 0, 2, 1, 0.25]), "sampling_errors": True},
    "mask": {"weights": torch.tensor([1, 1, 0, 1, 0, 1]), "structure": "block"},
    "diagonal": {"structure": "diagonal", "sampling_errors": True},
    "copula": {"transform": "copula"},
}


def _network():
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(2), nn.Linear(30, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIONS)
def test_moments_equal_those_on_the_cpu(name):
    model, x = _network(), torch.randn(6, 3, 5, 6)
    options, on_gpu = dict(OPTIONS[name]), dict(OPTIONS[name])
    if "weights" in options:
        on_gpu["weights"] = options["weights"].cuda()
    expected = collect(model, Inputs.of(x), ["0", "2"], batch_size=4, **options)
    found = collect(
        copy.deepcopy(model).cuda(), Inputs.of(x.cuda()), ["0", "2"], batch_size=4, **on_gpu
    )
    for layer, moments in expected.items():
        other = found[layer]
        assert other.mean_x.is_cuda
        assert other.count == moments.count
        for field in ("mean_x", "scatter_x", "scatter_xy", "scatter_y"):
            value, reference = getattr(other, field).cpu(), getattr(moments, field)
            torch.testing.assert_close(value, reference, rtol=1e-3, atol=1e-3)
        if moments.errors is not None:
            assert abs(other.effective_count / moments.effective_count - 1) < 1e-3


@pytest.mark.gpu
def test_nccl_reduces_and_a_file_resumes(tmp_path):
    model, x = _network().cuda(), torch.randn(6, 3, 5, 6, device="cuda")
    with Accumulator(model, ["0"], sampling_errors=True) as found:
        model(x)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        reduced = all_reduce(found)
    finally:
        dist.destroy_process_group()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(reduced.state_dict()[key], value, rtol=1e-9, atol=1e-9)
    resumed = Accumulator(model, ["0"], sampling_errors=True)
    resumed.load_state_dict({key: value.cpu() for key, value in found.state_dict().items()})
    with resumed:
        model(x)
    assert resumed.moments["0"].count == 2 * found.moments["0"].count
