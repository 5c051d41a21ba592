"""What a criterion does not look at is not measured: means and variances cost no covariance."""

import pytest
import torch
from torch import nn

import infoslice
from infoslice import measured_network
from infoslice.statistics import collect


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))


def _variance(statistics, weights):
    """Variance times weight of what reads each channel; the mean is looked at too."""
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in statistics.consumers:
        assert layer.mean.shape == layer.variance.shape
        gain = layer.variance * layer.weight.square().sum(0)
        total += gain[layer.variables].sum(1)
    return total


def _full(statistics, weights):
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in statistics.consumers:
        gain = layer.moments.covariance_x.diagonal() * layer.weight.square().sum(0)
        torch.testing.assert_close(layer.variance, layer.moments.covariance_x.diagonal())
        total += gain[layer.variables].sum(1)
    return total


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("target", ["pre", "post"])
def test_variances_are_measured_alone_and_equal_those_of_the_covariance(
    allocation, target, monkeypatch
):
    seen, layers = [], set()
    for name in ("collect", "measure"):
        function = getattr(measured_network, name)

        def spy(*args, _function=function, **options):
            seen.append(options["structure"])
            if _function is collect:
                layers.update(args[2])
            return _function(*args, **options)

        monkeypatch.setattr(measured_network, name, spy)
    model, x = _model(), torch.randn(64, 5)
    options = {
        "data": x, "allocation": allocation, "compensation": "none", "target": target,
        "show_progress": False,
    }  # fmt: skip
    keep = infoslice.prune(model, x[:2], criterion=_variance, **options).plan.keep
    assert set(seen) == {"diagonal"}
    assert "0" not in layers  # it reads no group
    seen.clear()
    expected = infoslice.prune(model, x[:2], criterion=_full, **options).plan.keep
    assert set(seen) == {"full"}
    assert keep.keys() == expected.keys()
    for name, kept in keep.items():
        assert torch.equal(torch.as_tensor(kept), torch.as_tensor(expected[name]))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_wide_layer_is_left_whole_only_by_criteria_that_need_its_covariance(allocation):
    model, x = _model(), torch.randn(64, 5)
    options = {
        "data": x, "allocation": allocation, "max_variables": 10, "show_progress": False,
    }  # fmt: skip
    whole = infoslice.prune(model, x[:2], criterion=_full, **options)
    assert "max_variables = 10" in " ".join(whole.report.left_whole.values())
    cut = infoslice.prune(model, x[:2], criterion=_variance, **options)
    assert set(cut.report.left_whole) == {"4"}  # the model's output
    assert cut.model[0].out_features < 12


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_normal_scores_are_for_informations_alone(allocation):
    model, x = _model(), torch.randn(64, 5).exp()
    options = {"data": x, "allocation": allocation, "show_progress": False}
    seen = []

    def spy(statistics, weights):
        seen.extend((layer.moments, layer.variance) for layer in statistics.consumers)
        return infoslice.criteria.causal(statistics, weights)

    infoslice.prune(model, x[:2], criterion=spy, transform="copula", **options)
    assert seen
    for moments, variance in seen:
        assert moments.transformed
        scores = moments.variance_x[moments.variance_x > 0]
        assert scores.max() <= 1
        assert abs(float(variance.mean()) - float(moments.variance_x.mean())) > 1e-3  # of values
    with pytest.raises(ValueError, match="transform=None with this criterion"):
        infoslice.prune(model, x[:2], criterion="obs", transform="copula", **options)
    # a criterion of variances is given those of the values, copula or not
    keep = [
        infoslice.prune(model, x[:2], criterion="variance", transform=t, **options).plan.keep
        for t in (None, "copula")
    ]
    assert {n: list(k) for n, k in keep[0].items()} == {n: list(k) for n, k in keep[1].items()}
    with pytest.raises(ValueError, match="transform"):
        infoslice.prune(model, x[:2], transform="rank", **options)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_sampling_errors_reach_the_criteria(allocation):
    model, x = _model(), torch.randn(64, 5)
    options = {
        "data": x, "allocation": allocation, "show_progress": False,
        "criterion_options": {"shrinkage": "ledoit_wolf"},
    }  # fmt: skip
    infoslice.prune(model, x[:2], sampling_errors=True, **options)
    with pytest.raises(ValueError, match="sampling_errors=True"):
        infoslice.prune(model, x[:2], **options)


def _spied(monkeypatch):
    """(layers, structure) of every measurement."""
    seen = []

    def spy(model, inputs, layers, **options):
        seen.append((tuple(layers), options["structure"]))
        return collect(model, inputs, layers, **options)

    monkeypatch.setattr(measured_network, "collect", spy)
    return seen


@pytest.mark.parametrize("criterion", ["obs", "l2_norm"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_the_one_shot_refit_takes_what_was_measured_and_fits_into_memory(
    criterion, allocation, monkeypatch
):
    seen = _spied(monkeypatch)
    model, x = _model(), torch.randn(64, 5)
    options = {
        "data": x, "criterion": criterion, "allocation": allocation, "show_progress": False,
        "compensation": "least_squares",
    }  # fmt: skip
    whole = infoslice.prune(model, x[:2], **options).model
    if allocation == "global":
        assert seen == [(("2", "4"), "full")]
    seen.clear()
    monkeypatch.setattr(measured_network, "_BYTES", 8 * 12**2)  # the covariance of the widest layer
    portions = infoslice.prune(model, x[:2], **options).model
    assert all(len(layers) == 1 for layers, structure in seen)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(portions.get_parameter(name), tensor)


def test_means_alone_are_measured_for_biases(monkeypatch):
    seen = _spied(monkeypatch)
    model, x = _model(), torch.randn(64, 5)
    infoslice.prune(
        model, x[:2], data=x, criterion="l2_norm", compensation="bias", show_progress=False
    )
    assert seen == [(("2", "4"), "diagonal")]


@pytest.mark.parametrize("compensation", ["bias", "least_squares"])
def test_one_shot_compensation_sees_the_perturbation_of_every_layer(compensation):
    """Fresh noise of mean 0 and variance 1: nothing to make up for, and nothing that it follows."""
    model, x = _model(), 5 + torch.randn(4000, 5)
    found = infoslice.prune(
        model, x[:2], data=x, criterion="l2_norm", compensation=compensation, injection="layer",
        compensation_ridge=1e-9, show_progress=False,
    )  # fmt: skip
    kept = found.plan.keep
    first, second = (next(k for k in kept if name in k) for name in ("0", "2"))
    expected = model[2].weight[kept[second]][:, kept[first]]
    torch.testing.assert_close(found.model[2].weight, expected, rtol=0, atol=0.06)
    torch.testing.assert_close(found.model[2].bias, model[2].bias[kept[second]], rtol=0, atol=0.1)
