"""The refit against closed forms and networks that it must restore exactly."""

import copy

import pytest
import torch
from torch import nn

import infoslice
import networks
from infoslice.compensation import joint_moments, refit_
from infoslice.demo import load_network
from infoslice.graph.following import following, sums
from infoslice.perturbation import Inputs
from infoslice.statistics import measure, ridged

KEPT = torch.tensor([0, 2, 3])


@pytest.mark.parametrize("bias", [True, False])
def test_weights_minimise_the_error_with_a_pull_to_the_old_ones(bias):
    layer = nn.Linear(5, 3, bias=bias).double()
    old = copy.deepcopy(layer)
    x = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    y = old(x).detach()
    ridge = 0.03
    refit_(layer, measure(layer, x, y), KEPT, ridge=ridge)
    xs = x[:, KEPT].requires_grad_(False)
    w = layer.weight.detach()[:, KEPT].clone().requires_grad_()
    b = (layer.bias if bias else torch.zeros(3)).detach().double().clone().requires_grad_(bias)
    second = xs.var(0, correction=0) if bias else xs.square().mean(0)
    pull = ridge * second
    loss = (y - xs @ w.T - b).square().sum(1).mean()
    loss = loss + (pull * (w - old.weight.detach()[:, KEPT]).square()).sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-9
    if bias:
        assert b.grad.abs().max() < 1e-9
    assert (layer.weight[:, [1, 4]] == 0).all()


def test_a_channel_that_others_determine_is_replaced_exactly():
    layer = nn.Linear(3, 4).double()
    free = torch.randn(100, 2, dtype=torch.float64)
    x = torch.cat([free, 2 * free[:, :1] - free[:, 1:] + 0.7], 1)
    y = layer(x).detach()
    refit_(layer, measure(layer, x, y), torch.tensor([0, 1]), ridge=1e-12)
    torch.testing.assert_close(layer(x).detach(), y, rtol=1e-8, atol=1e-8)


def test_the_error_left_is_the_conditional_variance():
    layer = nn.Linear(5, 3).double()
    x = torch.randn(500, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    y = layer(x).detach()
    gone = torch.tensor([1, 4])
    s = torch.cov(x.T, correction=0)
    v = torch.linalg.inv(torch.linalg.inv(s)[gone][:, gone])
    w = layer.weight.detach()[:, gone]
    refit_(layer, measure(layer, x, y), KEPT, ridge=1e-12)
    error = (layer(x) - y).square().sum(1).mean().item()
    assert error == pytest.approx((w @ v @ w.T).trace().item(), rel=1e-6)


def test_the_bias_goes_into_the_batch_norm_that_follows():
    conv, norm = nn.Conv2d(3, 4, 3, bias=False).double(), nn.BatchNorm2d(4).double().eval()
    model = nn.Sequential(conv, norm)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(4))
        norm.weight.copy_(torch.rand(4) + 0.5)
    x = torch.randn(50, 3, 6, 6, dtype=torch.float64)
    x[:, 2] = 0.5 * x[:, 0] - x[:, 1] + 3
    y, out = conv(x).detach(), model(x).detach()
    kept = torch.arange(18)
    refit_(conv, measure(conv, x, y), kept, norm=norm, ridge=1e-12)
    assert (conv.weight[:, 2] == 0).all()
    torch.testing.assert_close(model(x).detach(), out, rtol=1e-7, atol=1e-7)


def test_nothing_to_fit_keeps_the_old_weights():
    layer = nn.Linear(3, 2).double()
    old = layer.weight.detach().clone()
    x = torch.ones(10, 3, dtype=torch.float64)
    refit_(layer, measure(layer, x, layer(x)), torch.tensor([0, 1]))
    assert torch.equal(layer.weight[:, :2], old[:, :2])
    with pytest.raises(ValueError, match="ridge"):
        refit_(layer, measure(layer, x, layer(x)), torch.tensor([0]), ridge=0.0)


def test_joint_moments_take_the_input_here_and_the_output_there():
    original = networks.PlainCNN().double()
    pruned = copy.deepcopy(original)
    x = Inputs.of(torch.randn(5, *networks.PlainCNN.shape[1:], dtype=torch.float64))
    with torch.no_grad():
        pruned.body[0][0].weight.mul_(0.5)
    name = "body.7"
    seen = {}
    for key, model in (("x", pruned), ("y", original)):
        hook = model.get_submodule(name).register_forward_hook(
            lambda m, a, o, key=key: seen.update({key: (a[0] if key == "x" else o).clone()})
        )
        model.eval()(*x.args)
        hook.remove()
    expected = measure(pruned.get_submodule(name), seen["x"], seen["y"])
    got = joint_moments(pruned, original, name, x, batch_size=2)
    torch.testing.assert_close(got.covariance_xy, expected.covariance_xy)
    torch.testing.assert_close(got.mean_y, expected.mean_y)


def test_following_names_the_norm_and_the_activation_and_stops_at_a_sum():
    model = networks.Residual().eval()
    steps = following(infoslice.trace(model, torch.zeros(networks.Residual.shape)))
    first = steps["blocks.0.a.0"]
    assert [s.module for s in first if s.is_norm] == ["blocks.0.a.1"]
    assert len(first) == 2
    assert [s.module for s in steps["blocks.0.b.0"]] == ["blocks.0.b.1"]
    y = torch.randn(2, 6, 4, 4)
    model.blocks[0].a[1].running_mean.uniform_()
    expected = model.blocks[0].a[1](y).relu()
    for step in first:
        y = step.apply(model, y)
    torch.testing.assert_close(y, expected)
    assert steps["head"] == ()


def test_layers_called_twice_have_no_single_follower():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x):
            return self.norm(self.b(self.norm(self.a(self.a(x)))))

    steps = following(infoslice.trace(Twice(), torch.zeros(2, 3)))
    assert "a" not in steps
    assert steps["b"] == ()  # its norm also serves another layer


def _hidden():
    """A network of 6 hidden channels; the last two follow from the others, up to a constant."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 4)).double()
    with torch.no_grad():
        model[0].weight[4:] = 0
        model[0].weight[4] += model[0].weight[0] - model[0].weight[1]
    return model, torch.randn(100, 3, dtype=torch.float64)


def _keep_first_four(statistics, weights):
    return torch.arange(6.0).flip(0)


@pytest.mark.parametrize("how", ["least_squares", "sequential"])
def test_what_others_determine_is_made_up_for(how):
    model, x = _hidden()
    result = infoslice.prune(
        model, x[:1], data=x, criterion=_keep_first_four, pruning_ratio=1 / 3, compensation=how,
        compensation_ridge=1e-12, show_progress=False,
    )  # fmt: skip
    assert result.model[0].weight.shape == (4, 3)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-7, atol=1e-7)


def test_the_bias_takes_the_means_of_what_is_gone_and_the_weights_stay():
    model, x = _hidden()
    result = infoslice.prune(
        model, x[:1], data=x, criterion=_keep_first_four, pruning_ratio=1 / 3, compensation="bias",
        show_progress=False,
    )  # fmt: skip
    old, new = model[1], result.model[1]
    assert torch.equal(new.weight, old.weight[:, :4])
    gone = model[0](x).mean(0)[4:]
    torch.testing.assert_close(new.bias, old.bias + old.weight[:, 4:] @ gone)


def test_batch_norm_statistics_are_those_of_the_smaller_network():
    model = networks.PlainCNN().double().eval()
    x = torch.randn(40, *networks.PlainCNN.shape[1:], dtype=torch.float64)
    result = infoslice.prune(
        model, x[:1], data=x, criterion="l2_norm", compensation="batch_norm", batch_size=16,
        show_progress=False,
    )  # fmt: skip
    inputs = {}
    norms = {n: m for n, m in result.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    result.model.eval()(x)
    assert norms
    for name, norm in norms.items():
        torch.testing.assert_close(norm.running_mean, inputs[name].mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, inputs[name].var((0, 2, 3), correction=0))


def test_layers_that_cannot_take_the_mean_are_named():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4, bias=False))
    result = infoslice.prune(
        model, torch.randn(1, 3), criterion="l2_norm", compensation="bias", show_progress=False
    )
    assert "no bias" in result.report.not_refitted["2"]


@pytest.mark.parametrize(
    "given", ["some", ("bias", "sequential"), ("none", "bias"), ("batch_norm", "no")]
)
def test_compensations_that_exclude_each_other(given):
    with pytest.raises(ValueError, match="prune: argument compensation"):
        infoslice.prune(nn.Linear(2, 2), torch.randn(1, 2), compensation=given)


def test_sums_name_the_norm_and_the_wider_of_two_layers():
    found = sums(infoslice.trace(networks.Residual().eval(), torch.zeros(networks.Residual.shape)))
    assert found
    for layer, where in found.items():
        assert where.layer == layer
        assert layer in where.before
        assert "head" not in where.before
    demo = sums(infoslice.trace(load_network(), torch.zeros(1, 1, 28, 28)))
    assert list(demo) == [f"stages.{i}.conv2" for i in range(6)]
    assert demo["stages.2.conv2"].norm == "stages.2.bn2"
    assert "stages.2.shortcut.0" in demo["stages.2.conv2"].before
    assert "stages.3.conv1" not in demo["stages.2.conv2"].before


class Branch(nn.Module):
    """y = wide(relu(a x)) + stream(x), with or without a batch norm; the stream loses channels."""

    def __init__(self, norm):
        super().__init__()
        self.stream = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4))
        self.wide = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        stream = self.stream(x)
        return self.out(self.norm(self.wide(x)) + stream)


@pytest.mark.parametrize("norm", [False, True])
def test_a_branch_makes_up_for_what_the_other_operand_lost(norm):
    torch.manual_seed(3)
    model, x = Branch(norm).double().eval(), torch.randn(200, 3, dtype=torch.float64)
    if norm:
        with torch.no_grad():
            model.norm.running_mean.uniform_()
            model.norm.running_var.uniform_(1, 2)
            model.norm.weight.uniform_(0.5, 2)
    graph = infoslice.trace(model, x[:1])
    result = infoslice.prune(
        model, x[:1], data=x, criterion="l2_norm", pruning_ratio=0.0, graph=graph,
        pruning_ratio_dict={"stream.0": 0.75}, compensation_ridge=1e-12, show_progress=False,
    )  # fmt: skip
    # Two of three directions are lost to the stream for good; the branch, linear too, has them all.
    assert result.model.stream[0].weight.shape == (2, 3)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)


def test_the_refit_does_not_depend_on_the_scale_of_what_is_read():
    """As in language models: one neuron a thousand times the others must not switch the fit off."""
    layer = nn.Linear(5, 3).double()
    x = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    scale = torch.tensor([1.0, 1000.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    scaled = copy.deepcopy(layer)
    with torch.no_grad():
        scaled.weight /= scale
    y, kept = layer(x).detach(), torch.arange(4)
    refit_(layer, measure(layer, x, y), kept, ridge=0.1)
    refit_(scaled, measure(scaled, x * scale, y), kept, ridge=0.1)
    torch.testing.assert_close(scaled(x * scale), layer(x), rtol=1e-8, atol=1e-8)


def test_a_ridge_leaves_no_variable_without_a_share():
    s = torch.diag(torch.tensor([1e6, 1.0, 2.0, 1e-9, 0.0], dtype=torch.float64))
    added = (ridged(s, 0.1) - s).diagonal()
    torch.testing.assert_close(added, torch.tensor([1e5, 0.1, 0.2, 1e-4, 1e-4]).double())
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(ridged(nothing, 0.1), nothing)
