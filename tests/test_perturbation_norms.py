"""Layer norms and RMS norms as the points at which inputs are matched or perturbed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infoslice
from infoslice.criteria import causal
from infoslice.perturbation import Inputs, match, noise
from infoslice.perturbation.norms import noise_at_norms, normalised, normalised_layers
from infoslice.statistics import collect


class Block(nn.Module):
    """Tokens through two pre-norm layers with a residual sum."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.norm1, self.norm2 = norm(10), norm(10)
        self.fc1, self.fc2, self.head = nn.Linear(10, 10), nn.Linear(10, 3), nn.Linear(10, 3)
        with torch.no_grad():
            self.embed.weight.mul_(torch.linspace(0.2, 4, 10).unsqueeze(1))
            for layer in (self.norm1, self.norm2):
                layer.weight.uniform_(0.3, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + torch.nn.functional.gelu(self.fc1(self.norm1(x)))
        return self.fc2(self.norm2(x)) + self.head(x)


NORMS = [nn.LayerNorm, nn.RMSNorm]


@pytest.mark.parametrize("norm", NORMS)
def test_the_normalised_point_is_the_output_without_scale_and_shift(norm):
    layer, x = norm(7), torch.randn(3, 5, 7) * 4 + 1
    nn.init.normal_(layer.weight)
    shift = 0
    if isinstance(layer, nn.LayerNorm):
        shift = nn.init.normal_(layer.bias)
    z = normalised(layer, x)
    torch.testing.assert_close(layer.weight * z + shift, layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z.square().mean(-1), torch.ones(3, 5), rtol=1e-3, atol=1e-3)


def test_norms_of_transformers_are_known():
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    layer, x = modeling.LlamaRMSNorm(8), torch.randn(4, 8) * 1e-3  # eps counts
    nn.init.normal_(layer.weight)
    assert normalised_layers(nn.ModuleList([layer, nn.Linear(2, 2), nn.BatchNorm1d(3)])) == [layer]
    torch.testing.assert_close(layer.weight * normalised(layer, x), layer(x))


@pytest.mark.parametrize("norm", NORMS)
def test_match_makes_the_normalised_channels_alike(norm):
    torch.manual_seed(0)
    model = Block(norm)
    seen: dict[nn.Module, torch.Tensor] = {}
    for layer in normalised_layers(model):
        layer.register_forward_pre_hook(
            lambda layer, args: seen.__setitem__(layer, normalised(layer, args[0]).flatten(0, 1))
        )

    def unlike(x):
        with torch.no_grad():
            model(x)
        return sum(
            float(z.mean(0).square().mean() + (z.std(0, correction=0) - 1).square().mean())
            for z in seen.values()
        )

    start = noise(torch.zeros(1, 8, 6), 32)
    fitted = match(model, start, steps=100, show_progress=False)
    assert unlike(fitted.args[0]) < 0.5 * unlike(start.args[0])


@pytest.mark.parametrize("norm", NORMS)
def test_noise_at_norms_is_white_times_the_scale(norm):
    torch.manual_seed(0)
    model = Block(norm).eval()
    x = torch.randn(500, 8, 6)
    with noise_at_norms(model):
        found = collect(model, Inputs.of(x), ["fc1", "fc2", "head"], batch_size=100)
    plain = collect(model, Inputs.of(x), ["fc1", "fc2", "head"], batch_size=100)
    for name, layer in (("fc1", model.norm1), ("fc2", model.norm2)):
        scale = layer.weight.detach().double()
        white = torch.eye(10, dtype=torch.float64)
        if norm is nn.LayerNorm:  # the mean over channels is taken out
            white = (white - 0.1) * (10 / 9)
        expected = scale[:, None] * white * scale
        distance = (found[name].covariance_x - expected).norm() / expected.norm()
        assert distance < 0.1
        assert (plain[name].covariance_x - expected).norm() / expected.norm() > 0.3
    again = collect(model, Inputs.of(x), ["fc1"], batch_size=100)["fc1"]
    assert torch.equal(again.covariance_x, plain["fc1"].covariance_x)  # the hooks are gone


def test_prune_scores_on_noise_at_norms():
    torch.manual_seed(0)
    model = Block(nn.LayerNorm).eval()
    seen = []

    def criterion(statistics, weights):
        seen.extend(c.moments.covariance_x for c in statistics.consumers if c.name == "fc2")
        return causal(statistics, weights)

    example = torch.zeros(1, 8, 6)
    options = {"samples": 500, "show_progress": False, "compensation": "least_squares"}
    result = infoslice.prune(model, example, criterion=criterion, injection="norm", **options)
    assert result.report.after.parameters < result.report.before.parameters
    scale = model.norm2.weight.detach().double()
    assert (seen[0].diagonal() / scale.square() - 1).abs().max() < 0.15
    with pytest.raises(ValueError, match="expected layer norms or RMS norms"):
        infoslice.prune(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3),
            injection="norm", **options,
        )  # fmt: skip
