"""What is padded counts neither for scores nor for refits."""

import pytest
import torch
from torch import nn

import infoslice
from infoslice.allocation import relative_error
from infoslice.perturbation import Inputs
from infoslice.statistics import collect_samples, output_curvature


class Tagger(nn.Module):
    """Tokens through an MLP with a residual sum; their mean, by the mask, through another."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x, mask):
        x = self.embed(x)
        x = x + self.down(self.up(x).relu())
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(self.hidden(pooled).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tagger()


@pytest.fixture
def plain():
    return {"x": torch.randn(60, 5, 6), "mask": torch.ones(60, 5)}


@pytest.fixture
def padded(plain):
    x, mask = 50 * torch.randn(60, 9, 6), torch.zeros(60, 9)
    x[:, 2:7], mask[:, 2:7] = plain["x"], 1
    return {"x": x, "mask": mask}


def _same(a, b, **tolerance):
    assert a.plan.keep.keys() == b.plan.keep.keys()
    for name, kept in a.plan.keep.items():
        assert list(kept) == list(b.plan.keep[name])
    for name, tensor in a.model.state_dict().items():
        torch.testing.assert_close(tensor, b.model.state_dict()[name], **tolerance)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("compensation", ["none", "bias", "least_squares", "sequential"])
@pytest.mark.parametrize("criterion", ["causal", "flap", "mint"])
def test_padded_data_prune_as_data_without(
    model, plain, padded, criterion, compensation, allocation
):
    options = {
        "criterion": criterion, "compensation": compensation, "allocation": allocation,
        "batch_size": 16, "show_progress": False,
    }  # fmt: skip
    example = {name: t[:2] for name, t in plain.items()}
    expected = infoslice.prune(model, example, data=plain, **options)
    found = infoslice.prune(model, example, data=padded, data_weights=padded["mask"], **options)
    assert expected.plan.keep
    _same(found, expected, rtol=1e-4, atol=1e-5)
    if compensation != "none" or criterion == "flap":
        dirty = infoslice.prune(model, example, data=padded, **options)
        differs = [
            tensor.shape != found.model.state_dict()[name].shape
            or not torch.allclose(tensor, found.model.state_dict()[name], atol=1e-3)
            for name, tensor in dirty.model.state_dict().items()
        ]
        assert any(differs)


def test_a_weight_of_two_is_a_sample_twice(model, plain):
    twice = {name: torch.cat([t, t[:20]]) for name, t in plain.items()}
    weights = torch.ones(60)
    weights[:20] = 2
    example = {name: t[:2] for name, t in plain.items()}
    expected = infoslice.prune(model, example, data=twice, show_progress=False)
    found = infoslice.prune(model, example, data=plain, data_weights=weights, show_progress=False)
    _same(found, expected, rtol=1e-4, atol=1e-5)


class Renamed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, attention_mask):
        return self.model(x, attention_mask)


def test_a_padding_mask_among_the_data_is_seen_by_its_name(model, plain, padded):
    """Allocation by sensitivity, whose divergence leaves out what is padded too."""
    expected, found, told_otherwise = (
        infoslice.prune(
            Renamed(model), {"x": data["x"][:2], "attention_mask": data["mask"][:2]},
            data={"x": data["x"], "attention_mask": data["mask"]}, data_weights=weights,
            allocation="sensitivity", show_progress=False,
        )
        for data, weights in ((plain, None), (padded, None), (padded, torch.ones(60)))
    )  # fmt: skip
    _same(found, expected, rtol=1e-4, atol=1e-5)
    weight = "model.head.weight"
    a, b = (r.model.state_dict()[weight] for r in (found, told_otherwise))
    assert a.shape != b.shape or not torch.allclose(a, b, atol=1e-3)


def test_relative_error_by_weights():
    y, y0, mask = torch.randn(4, 3, 2), torch.randn(4, 3, 2), (torch.rand(4, 3) < 0.6).float()
    kept = relative_error(y[mask > 0], y0[mask > 0])
    assert abs(relative_error(y, y0, mask) - kept) < 1e-9
    rows = mask.amax(1) > 0
    kept = relative_error(y[rows, 0], y0[rows, 0])
    assert abs(relative_error(y[:, 0], y0[:, 0], mask) - kept) < 1e-9


def test_curvature_counts_predictions_by_their_weights():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(8, 4, 4)
    mask = (torch.rand(8, 4) < 0.5).float()
    options = {"shrinkage": 0, "batch_size": 8, "loss": "squared_error"}
    dirty = torch.where(mask[..., None] > 0, x, 100 * x)
    for kept in (x, dirty):  # what is masked does not matter
        f = output_curvature(model, Inputs.of(kept, mask), ["0", "2"], **options)
        y = model(x)[mask > 0].double()
        # The outputs themselves: the mean of the squares of the noise drawn, over that of y.
        trace = f["2"].diagonal().sum() * y.square().sum() / 2
        noise = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        expected = noise[mask.flatten() > 0].double().square().sum()
        torch.testing.assert_close(trace.detach(), expected, rtol=1e-4, atol=0)


def test_batch_norm_is_restated_on_what_has_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    model.eval()
    x = torch.randn(12, 2, 8, 8)
    options = {"criterion": "l2_norm", "compensation": "batch_norm", "show_progress": False}
    weights = torch.tensor([1.0] * 7 + [0.0] * 5)
    found = infoslice.prune(model, x[:1], data=x, data_weights=weights, batch_size=8, **options)
    expected = infoslice.prune(model, x[:1], data=x[:7], **options)
    _same(found, expected)


def test_samples_are_means_of_what_has_weight(model, plain, padded):
    expected = collect_samples(model, Inputs.of(plain), ["up", "hidden"], limit=50)
    inputs = Inputs.of(padded, padded["mask"])
    found = collect_samples(model, inputs, ["up", "hidden"], limit=50, batch_size=16)
    for name, samples in expected.items():
        torch.testing.assert_close(found[name].x, samples.x)
        torch.testing.assert_close(found[name].y, samples.y)
    none = padded["mask"].clone()
    none[3] = 0
    fewer = collect_samples(model, Inputs.of(padded, none), ["up"], limit=60)["up"]
    assert len(fewer.x) == 59


def test_refusals(model, plain):
    example = {name: t[:2] for name, t in plain.items()}
    for weights, text in (
        (torch.ones(7), "argument weights"),
        (torch.tensor(1.0), "argument weights"),
        (-torch.ones(60), ">= 0"),
        (torch.ones(60, 4), "argument weights"),
    ):
        with pytest.raises(ValueError, match=text):
            infoslice.prune(model, example, data=plain, data_weights=weights, show_progress=False)
    with pytest.raises(ValueError, match="data_weights: expected None"):
        infoslice.prune(model, example, data_weights=torch.ones(2), show_progress=False)
