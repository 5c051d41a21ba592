"""Half of the channels of every group of a ResNet-50: trace, plan and apply, beside plain torch.

``apply`` includes the run of a weightless smaller copy that guards every cut; the loop of
``index_select`` is given the ready positions and only moves memory, so it is the floor, not a peer.
Torch-Pruning, where installed, does the whole job: graph, groups, importance (L2) and cut.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from infoslice.graph import trace
from infoslice.surgery import plan


class Bottleneck(nn.Module):
    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(into, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or into != out:
            project = nn.Conv2d(into, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    into = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(Bottleneck(into, width, stride if i == 0 else 1))
            into = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 1000)]
    return nn.Sequential(*layers).eval()


X = torch.zeros(1, 3, 224, 224)


def half(graph: Any) -> dict[str, torch.Tensor]:
    """Every second channel."""
    return {group.name: torch.arange(0, group.channels, 2) for group in graph.prunable}


def fingerprint(model: nn.Module) -> torch.Tensor:
    """Sum of every tensor of the state: what all entrants must agree on."""
    return torch.stack([tensor.double().sum() for tensor in model.state_dict().values()])


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, Any, Any, torch.Tensor]:
    """The model, its graph, the plan, and the state wanted, cut by advanced indexing in float64."""
    model = resnet50()
    graph = trace(model, X)
    pruning = plan(graph, keep=half(graph))
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for cut in pruning.cuts:
        where: list[Any] = [slice(None)] * state[cut.tensor].dim()
        where[cut.axis] = cut.keep
        state[cut.tensor] = state[cut.tensor][tuple(where)]
    return model, graph, pruning, torch.stack([tensor.sum() for tensor in state.values()])


def test_trace(benchmark: Any, setting: Any) -> None:
    model, graph, _, _ = setting
    benchmark.group = "ResNet-50: trace"
    assert benchmark(trace, model, X).groups == graph.groups


@pytest.mark.parametrize("implementation", ["infoslice", "torch index_select, ready positions"])
def test_apply(race: Any, setting: Any, implementation: str) -> None:
    model, _, pruning, expected = setting
    cuts = pruning.cuts

    def ours() -> nn.Module:
        return pruning.apply(model).model  # type: ignore[no-any-return]

    def loop() -> dict[str, torch.Tensor]:
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        for cut in cuts:
            state[cut.tensor] = state[cut.tensor].index_select(cut.axis, cut.keep)
        return state

    if implementation == "infoslice":
        result = fingerprint(ours())
        run: Any = ours
    else:
        result = torch.stack([tensor.double().sum() for tensor in loop().values()])
        run = loop
    assert torch.allclose(result, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    race("ResNet-50: apply", implementation, lambda: (run(), result)[1], expected, 1e-6)


@pytest.mark.parametrize("implementation", ["infoslice", "torch-pruning"])
def test_whole_job(race: Any, setting: Any, implementation: str) -> None:
    model = setting[0]

    def ours() -> nn.Module:
        graph = trace(model, X)
        return plan(graph, keep=half(graph)).apply(model).model

    def theirs() -> nn.Module:
        peer = pytest.importorskip("torch_pruning")
        smaller = copy.deepcopy(model)
        pruner = peer.pruner.BasePruner(
            smaller, X, peer.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=[smaller[-1]],
        )  # fmt: skip
        pruner.step()
        return smaller

    run = ours if implementation == "infoslice" else theirs
    wanted = torch.tensor([float(sum(p.numel() for p in ours().parameters()))])
    parameters = torch.tensor([float(sum(p.numel() for p in run().parameters()))])
    race("ResNet-50: whole job", implementation, lambda: (run(), parameters)[1], wanted, 0.0)
