"""Criteria of weights alone, against brute force and the rules of the released code."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

import infoslice
from infoslice.compensation import merge_
from infoslice.criteria import CRITERIA, batch_norm_scale, cop, fpgm, merges, srinivas_babu
from infoslice.graph.following import following
from infoslice.group_statistics import GroupStatistics, NotMeasuredError
from infoslice.group_weights import filters

NAMES = ("batch_norm_scale", "cop", "fpgm", "srinivas_babu")


def _unmeasured():
    raise AssertionError("a criterion of weights asked for statistics")


def _statistics(model, example, name=None):
    """A group of the model, with statistics that cannot be had."""
    graph = infoslice.trace(model, example)
    group = graph.prunable[0] if name is None else graph.group(name)
    norms = {n: s[0].module for n, s in following(graph).items() if s and s[0].is_norm}
    return group, GroupStatistics(group, model, _unmeasured, norms)


def _stir_(model):
    """Batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.double().eval()


class _Residual(nn.Module):
    """A stream that two convolutions write, each with its batch norm, and two layers read."""

    def __init__(self, width=6):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, width, 3, bias=False), nn.BatchNorm2d(width)
        self.conv1, self.bn1 = nn.Conv2d(width, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.head(x.relu().mean((2, 3)))


IMAGE = torch.zeros(1, 2, 8, 8, dtype=torch.float64)


def _saliencies(incoming, outgoing):
    """Brute force: s_ij = mean_k a_kj^2 * |W_i - W_j|^2 by loops."""
    return {
        (i, j): sum((a[j] ** 2).mean(-1).sum() for a in outgoing)
        * sum(((w[i] - w[j]) ** 2).sum() for w in incoming)
        for i, j in itertools.permutations(sorted(outgoing[0]), 2)
    }


def test_srinivas_babu_is_the_greedy_surgery_by_brute_force():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5)).double()
    group, statistics = _statistics(model, torch.zeros(1, 4, dtype=torch.float64))
    scores = srinivas_babu(statistics)
    incoming = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().numpy()
    left = {j: model[2].weight[:, j].detach().numpy().copy() for j in range(7)}
    order, last = [], 0.0
    while len(left) > 1:
        found = _saliencies([incoming], [{j: a[None] for j, a in left.items()}])
        i, j = min(found, key=found.__getitem__)
        last = max(last, found[i, j])
        assert scores[j].item() == pytest.approx(last, rel=1e-9)
        left[i] += left.pop(j)
        order.append(j)
    assert scores.argsort()[:-1].tolist() == order

    keep = torch.tensor(sorted(set(range(7)) - set(order[:4])))
    merge_(model, group, merges(statistics, keep))
    # The surgery above went on to one channel; do it again up to four.
    again = dict(enumerate(statistics.outgoing[0][:, 0].numpy().copy()))
    for _ in range(4):
        found = _saliencies([incoming], [{j: a[None] for j, a in again.items()}])
        i, j = min(found, key=found.__getitem__)
        again[i] += again.pop(j)
    for j, a in again.items():
        np.testing.assert_allclose(model[2].weight[:, j].detach().numpy(), a, rtol=1e-12)


def test_srinivas_babu_sums_producers_consumers_and_folds_batch_norms():
    torch.manual_seed(1)
    model = _stir_(_Residual())
    _, statistics = _statistics(model, IMAGE, "stem")
    incoming = []
    for conv, bn in ((model.stem, model.bn), (model.conv2, model.bn2)):
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
        bias = 0.0 if conv.bias is None else conv.bias.detach()
        shift = (bias - bn.running_mean) * scale + bn.bias.detach()
        incoming += [(conv.weight.detach().flatten(1) * scale[:, None]).numpy()]
        incoming += [shift[:, None].numpy()]
    conv1 = model.conv1.weight.detach().permute(1, 2, 3, 0).flatten(1, 2).numpy()
    head = model.head.weight.detach().T[:, None].numpy()
    outgoing = [dict(enumerate(conv1)), dict(enumerate(head))]
    first = _saliencies(incoming, outgoing)
    i, j = min(first, key=first.__getitem__)
    scores = srinivas_babu(statistics)
    assert int(scores.argmin()) == j
    assert scores[j].item() == pytest.approx(first[i, j], rel=1e-9)


def _copied(width, times):
    """Which of the first channels each channel repeats."""
    return torch.arange(width * times) % width


def _duplicated(kind):
    """A network whose first prunable group holds every channel twice, with the group's name."""
    torch.manual_seed(2)
    repeats = _copied(4, 2)
    if kind == "linear":
        model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 5)).double().eval()
        model[0].weight.data = model[0].weight.data[repeats]
        model[0].bias.data = model[0].bias.data[repeats]
        return model, torch.randn(9, 3, dtype=torch.float64), "0"
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    if kind == "depthwise":
        layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)]
        model = nn.Sequential(*layers, nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 16, 5))
        nn.init.uniform_(model[4].weight)
        repeated = model[:5].modules()
    else:
        model = _Residual(8)
        repeated = [model.stem, model.bn, model.conv2, model.bn2]
    model = _stir_(model)
    for module in repeated:
        for tensor in module.state_dict().values():
            if tensor.dim() and len(tensor) == 8:
                tensor.copy_(tensor[repeats])
    return model, x, "stem" if kind == "residual" else "0"


@pytest.mark.parametrize("kind", ["linear", "depthwise", "residual"])
def test_merging_repeated_channels_changes_nothing(kind):
    model, x, name = _duplicated(kind)
    graph = infoslice.trace(model, x[:1])
    expected = model(x).detach()
    result = infoslice.prune(
        model, x[:1], criterion="srinivas_babu", compensation="merge", allocation="uniform",
        pruning_ratio=0.0, pruning_ratio_dict={name: 0.5}, show_progress=False,
    )  # fmt: skip
    kept = result.plan.keep[name]
    assert sorted((kept % 4).tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(result.model(x), expected, rtol=0, atol=1e-12)
    assert result.report.perturbation == "none"  # no forward was needed
    plain = infoslice.plan(graph, keep={name: kept}).apply(model)
    assert (plain.model(x) - expected).abs().max() > 1e-3


def test_merging_repeated_heads_and_gated_channels_changes_nothing():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    layer, tokens = model.model.layers[0], torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = layer.self_attn.get_submodule(name).weight
            weight[len(weight) // 2 :] = weight[: len(weight) // 2]
        for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
            weight[6:] = weight[:6]
    graph = infoslice.trace(model, {"input_ids": tokens})
    halved = {"model.layers.0.self_attn.k_proj", "model.layers.0.mlp.gate_proj"}
    own = {g.name: 0.5 * bool(halved & set(g.producers)) for g in graph.prunable}
    expected = model(tokens).logits
    result = infoslice.prune(
        model, {"input_ids": tokens}, criterion="srinivas_babu", compensation="merge",
        allocation="uniform", pruning_ratio=0.0, pruning_ratio_dict=own, show_progress=False,
    )  # fmt: skip
    assert sorted(len(kept) for kept in result.plan.keep.values()) == [2, 6]
    torch.testing.assert_close(result.model(tokens).logits, expected, rtol=0, atol=1e-12)


def test_merges_resolve_chains_and_keep_what_is_kept():
    model, _, _ = _duplicated("linear")
    group, statistics = _statistics(model, torch.zeros(1, 3, dtype=torch.float64))
    into = merges(statistics, torch.tensor([5, 0]))
    assert into[[5, 0]].tolist() == [5, 0]
    assert set(into.tolist()) == {0, 5}
    assert into[1] == 5
    assert into[4] == 0
    with pytest.raises(ValueError, match="at least one channel"):
        merges(statistics, torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="merges into another"):
        merge_(model, group, torch.tensor([1, 2, 2, 3, 4, 5, 6, 7]))


def test_merging_goes_without_bias():
    with pytest.raises(ValueError, match="not 'bias' beside 'merge'"):
        infoslice.prune(
            nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2),
            compensation=("merge", "bias"),
        )  # fmt: skip


def _released_cop(weight, top_k):
    """The correlation part of COP as released, on a weight ``[positions, channels, outputs]``."""
    corr = np.mean([np.abs(np.corrcoef(w)) for w in weight], 0)
    corr /= (corr * (1 - np.eye(len(corr)))).max()
    return 1 - np.sort(corr, 0)[-top_k - 1 : -1].mean(0)


@pytest.mark.parametrize("top_k", [1, 3])
def test_cop_is_the_released_rule_averaged_over_consumers(top_k):
    torch.manual_seed(3)
    model = _stir_(_Residual())
    _, statistics = _statistics(model, IMAGE, "stem")
    conv1 = model.conv1.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).numpy()
    head = model.head.weight.detach().T[None].numpy()
    expected = (_released_cop(conv1, top_k) + _released_cop(head, top_k)) / 2
    np.testing.assert_allclose(cop(statistics, top_k=top_k).numpy(), expected, rtol=1e-10)


def test_cop_costs_and_channels_that_nothing_reads():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6)).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0.0
        model[2].weight[:, 2] = 0.3  # constant: correlates with nothing
    _, statistics = _statistics(model, torch.zeros(1, 3, dtype=torch.float64))
    plain = cop(statistics, top_k=1)
    assert plain[1] == 0
    assert plain[2] == 1
    costs = {"0": 64.0, "other": 4096.0}
    both = cop(statistics, top_k=1, beta=2.0, gamma=3.0, macs=costs, parameters={"0": 8.0})
    torch.testing.assert_close(both, plain + 2.0 * (1 - 6 / 12))
    for options, text in (
        ({"beta": 1.0}, "macs: expected numbers > 1"),
        ({"gamma": 1.0, "parameters": {"x": 2.0}}, "parameters: expected numbers > 1"),
        ({"top_k": 0}, "top_k"),
        ({"alpha": math.nan}, "alpha"),
    ):
        with pytest.raises(ValueError, match=text):
            cop(statistics, **options)


@pytest.mark.parametrize("norm_ratio", [0.0, 0.34])
def test_fpgm_sums_distances_among_filters_that_pass_the_norm(norm_ratio):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 3, 3)).double()
    group, statistics = _statistics(model, IMAGE)
    scores = fpgm(statistics, filters(group, model), norm_ratio=norm_ratio).numpy()
    rows = model[0].weight.detach().flatten(1).numpy()
    norms = np.linalg.norm(rows, axis=1)
    small, rest = np.split(norms.argsort(), [int(norm_ratio * 7)])
    expected = cdist(rows[rest], rows[rest]).sum(0)
    np.testing.assert_allclose(scores[rest], expected, rtol=1e-12)
    assert (scores[small] < 0).all()
    assert scores[small].argsort().tolist() == list(range(len(small)))
    with pytest.raises(ValueError, match="norm_ratio"):
        fpgm(statistics, filters(group, model), norm_ratio=1.0)


def test_batch_norm_scale_is_the_mean_of_the_groups_norms_and_leaves_others_whole():
    model = _stir_(_Residual())
    model.bn2.weight.data.neg_()
    _, statistics = _statistics(model, IMAGE, "stem")
    expected = (model.bn.weight.abs() + model.bn2.weight.abs()).detach() / 2
    torch.testing.assert_close(batch_norm_scale(statistics), expected)
    _, statistics = _statistics(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2))
    with pytest.raises(NotMeasuredError, match="no batch norm"):
        batch_norm_scale(statistics)
    mixed = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
    )
    result = infoslice.prune(
        mixed, IMAGE.float(), criterion="batch_norm_scale", compensation="none",
        show_progress=False,
    )  # fmt: skip
    assert "no batch norm" in result.report.left_whole["0"]
    assert result.model[2].out_channels < 4


def test_all_score_layers_that_cannot_be_measured():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, groups=4), nn.BatchNorm2d(12),
        nn.ConvTranspose2d(12, 6, 2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 25, 3),
    )  # fmt: skip
    graph = infoslice.trace(_stir_(model), IMAGE)
    assert len(graph.prunable) >= 3
    for group in graph.prunable:
        statistics = GroupStatistics(group, model, _unmeasured)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        for name in NAMES:
            scores = CRITERIA[name](statistics, filters(group, model))
            assert scores.dtype == torch.float64
            assert scores.shape == (group.channels,)
            assert scores.isfinite().all()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", NAMES)
def test_scores_follow_the_channels(name):
    """Renumbering the channels of a layer renumbers the scores."""
    torch.manual_seed(6)
    model = _stir_(_Residual())
    group, statistics = _statistics(model, IMAGE, "conv1")
    scores = CRITERIA[name](statistics, filters(group, model))
    mix = torch.randperm(group.channels)
    with torch.no_grad():
        for tensor in (*model.conv1.state_dict().values(), *model.bn1.state_dict().values()):
            if tensor.dim():
                tensor.copy_(tensor[mix])
        model.conv2.weight.copy_(model.conv2.weight[:, mix])
    group, statistics = _statistics(model, IMAGE, "conv1")
    mixed = CRITERIA[name](statistics, filters(group, model))
    if name == "srinivas_babu":  # of the last pair either may go: its saliencies differ
        assert scores[mix].argsort()[:3].tolist() == mixed.argsort()[:3].tolist()
    torch.testing.assert_close(mixed, scores[mix], rtol=1e-9, atol=1e-12)
