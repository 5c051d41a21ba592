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

from bench.contest import OURS, Case, Contest, tests_of
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
SELECT, PRUNING = "torch.index_select, ready positions", "torch-pruning"


def half(graph: Any) -> dict[str, torch.Tensor]:
    """Every second channel."""
    return {group.name: torch.arange(0, group.channels, 2) for group in graph.prunable}


def fingerprint(result: nn.Module | dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of every tensor of a model's state."""
    state = result.state_dict() if isinstance(result, nn.Module) else result
    return torch.stack([tensor.detach().double().sum() for tensor in state.values()])


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.tensor([float(sum(p.numel() for p in model.parameters()))])


def trace_contest() -> Contest:
    model = resnet50()

    def sizes(graph: Any) -> torch.Tensor:
        return torch.tensor([float(group.channels) for group in graph.groups])

    return Contest({OURS: lambda: trace(model, X)}, sizes(trace(model, X)), 0, sizes)


def apply_contest() -> Contest:
    """The state wanted is cut by advanced indexing in float64."""
    model = resnet50()
    graph = trace(model, X)
    pruning = plan(graph, keep=half(graph))
    wanted = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for cut in pruning.cuts:
        where: list[Any] = [slice(None)] * wanted[cut.tensor].dim()
        where[cut.axis] = cut.keep
        wanted[cut.tensor] = wanted[cut.tensor][tuple(where)]

    def loop() -> dict[str, torch.Tensor]:
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        for cut in pruning.cuts:
            state[cut.tensor] = state[cut.tensor].index_select(cut.axis, cut.keep)
        return state

    entrants: dict[str, Any] = {
        OURS: lambda: pruning.apply(model).model,
        SELECT: loop,
    }
    return Contest(entrants, fingerprint(wanted), 1e-6, fingerprint)


def job_contest() -> Contest:
    model = resnet50()

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

    entrants: dict[str, Any] = {OURS: ours, PRUNING: theirs}
    return Contest(entrants, parameters(ours()), 0, parameters)


CASES = [
    Case("ResNet-50: trace", (OURS,), trace_contest),
    Case("ResNet-50: apply", (OURS, SELECT), apply_contest),
    Case("ResNet-50: whole job", (OURS, PRUNING), job_contest),
]

test_contests = tests_of(CASES)
