"""The side by side of whole jobs: ours runs, is exact where it must be, and fails in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.peers_surgery import OURS, Probe, child, error, run_one


def small() -> tuple[nn.Module, dict[str, Any]]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    return net.eval(), {"x": torch.zeros(1, 3, 8, 8)}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, _ = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def named() -> tuple[nn.Module, dict[str, Any]]:
    return Named().eval(), {"x": torch.zeros(1, 3, 8, 8)}


def test_a_run_of_ours() -> None:
    threads = torch.get_num_threads()
    try:
        found = run_one(Probe("small", named, None), OURS, "time")
    finally:
        torch.set_num_threads(threads)
    assert found["runs"]
    assert found["after"] < found["before"]
    assert found["seconds"] > 0
    assert error(*named()) < 1e-12


def test_a_run_that_fails_says_why() -> None:
    told = child(Probe("no such probe", named, None), OURS, "time", None)
    assert "failed" in told["failed"]
    stopped = child(Probe("ResNet-50", named, None, limit=0), OURS, "time", None)
    assert stopped["failed"] == "stopped after 0 s"
