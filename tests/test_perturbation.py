"""Maximum-entropy inputs, plain and matched to recorded statistics."""

import math

import pytest
import torch
from torch import nn

import networks
from infoslice.perturbation import Inputs, match, noise


def test_noise_has_mean_zero_variance_one_and_the_shape_of_the_example():
    for kind in ("gaussian", "uniform"):
        (x,) = noise(torch.zeros(2, 3, 5, 4), 4000, kind=kind, seed=3).args
        assert x.shape == (4000, 3, 5, 4)
        assert x.dtype == torch.float32
        assert abs(x.mean().item()) < 5 / math.sqrt(x.numel())
        assert abs(x.var().item() - 1) < 0.02
        fourth = x.pow(4).mean().item()
        assert abs(fourth - (3.0 if kind == "gaussian" else 1.8)) < 0.05
    assert x.abs().max().item() <= math.sqrt(3) + 1e-6


def test_noise_follows_the_seed_and_the_structure():
    example = {"a": torch.zeros(1, 2), "b": (torch.zeros(1, 3, dtype=torch.float64), "flag")}
    one, two, other = (noise(example, 5, seed=s) for s in (1, 1, 2))
    assert one.args == ()
    assert one.kwargs["b"][1] == "flag"
    assert one.kwargs["b"][0].dtype == torch.float64
    assert torch.equal(one.kwargs["a"], two.kwargs["a"])
    assert not torch.equal(one.kwargs["a"], other.kwargs["a"])
    assert one.samples() == 5
    assert [b.samples() for b in one.batches(2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: noise(torch.zeros(1, 2), 1), ValueError, "samples: expected at least 2, got 1"),
        (lambda: noise(torch.zeros(1, 2), 4, kind="cauchy"), ValueError, "got 'cauchy'"),
        (lambda: noise(torch.zeros(1, 2, dtype=torch.int64), 4), TypeError, "got torch.int64"),
        (lambda: noise(3.0, 4), TypeError, "got float"),
        (lambda: Inputs.of((torch.zeros(2, 1), torch.zeros(3, 1))).samples(), ValueError, "common"),
        (lambda: match(nn.Linear(2, 2), noise(torch.zeros(1, 2), 4)), ValueError, "batch-norm"),
        (
            lambda: match(nn.BatchNorm1d(2), noise(torch.zeros(1, 2), 4), steps=0),
            ValueError,
            "steps: expected at least 1",
        ),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def _trained_statistics() -> nn.Module:
    """A network whose batch norms have recorded skewed, correlated, non-white inputs."""
    model = networks.Residual()
    with torch.no_grad():
        for _ in range(60):
            model(torch.rand(32, *networks.Residual.shape[1:]).cumsum(2))
    return model


def _mismatch(model: nn.Module, x: torch.Tensor) -> float:
    found = []

    def hook(norm, args):
        axes = [0, 2, 3]
        mean, var = args[0].mean(axes), args[0].var(axes, unbiased=False)
        found.append(((mean - norm.running_mean) ** 2 / norm.running_var).mean())
        found.append(((var / norm.running_var).sqrt() - 1).square().mean())

    hooks = [
        m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    model.eval()
    with torch.no_grad():
        model(x)
    for h in hooks:
        h.remove()
    return float(sum(found))


def test_match_brings_the_recorded_statistics_about_and_changes_nothing_else():
    model = _trained_statistics().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = noise(torch.zeros(networks.Residual.shape), 32)
    kept = start.args[0].clone()
    fitted = match(model, start, steps=150, show_progress=False)
    assert torch.equal(start.args[0], kept)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not fitted.args[0].requires_grad
    assert _mismatch(model, fitted.args[0]) < 0.1 * _mismatch(model, kept)
    again = match(model, start, steps=150, show_progress=False)
    assert torch.equal(fitted.args[0], again.args[0])


def test_match_refuses_what_is_not_finite():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_mean[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        match(model, noise(torch.zeros(1, 2), 8), show_progress=False)


def test_batches_bound_the_memory_and_not_the_result():
    model = _trained_statistics()
    start = noise(torch.zeros(networks.Residual.shape), 20)
    whole = match(model, start, steps=3, batch_size=20, show_progress=False)
    parts = match(model, start, steps=3, batch_size=7, show_progress=False)
    torch.testing.assert_close(parts.args[0], whole.args[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="batch_size"):
        match(model, start, batch_size=0)
