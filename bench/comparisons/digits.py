"""A small residual network on the digits of scikit-learn, trained when the task is loaded (5 s).

    infoslice compare bench/comparisons/digits.py --criteria causal,random --ratios 0.25,0.5,0.7

1,797 images of 8x8: 1,297 to train on and to draw real inputs from, 500 to judge by; one image is
0.2 points.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.comparison import Method, Task, compare_methods

TEST, SAMPLES, EPOCHS = 500, 256, 8


class Network(nn.Module):
    """Three 3x3 convolutions with batch norms, the last one residual; mean, linear."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width)
        self.bn3, self.fc = nn.BatchNorm2d(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(x + self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def images() -> tuple[Tensor, Tensor]:
    """Standardised, float32 ``[1797, 1, 8, 8]``, in a fixed random order, and labels."""
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = pixels[order].float().view(-1, 1, 8, 8)
    return (x - x[TEST:].mean()) / x[TEST:].std(), labels[order].long()


def train(x: Tensor, labels: Tensor) -> Network:
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = EPOCHS * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(labels)), 64):
            loss = F.cross_entropy(model(x[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def task() -> Task:
    x, labels = images()

    def evaluate(network: nn.Module) -> float:
        return (network(x[:TEST]).argmax(1) == labels[:TEST]).float().mean().item()

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return x[TEST + torch.randperm(len(x) - TEST, generator=generator)[:SAMPLES]]

    return Task(
        "digits",
        train(x[TEST:], labels[TEST:]),
        torch.zeros(1, 1, 8, 8),
        evaluate,
        {"matched": "matched", "gaussian": "gaussian", "uniform": "uniform", "real": draw},
        options={"samples": SAMPLES},
    )


def main() -> None:
    """The table of bench/results: plain scores, with the remedies, and with data."""
    torch.set_num_threads(1)
    plain = ("none", "uniform", "gaussian")
    methods = [
        Method("random", *plain),
        Method("random", "sequential", "uniform", "matched"),
        Method("causal:score=pairwise", *plain),
        Method("causal", *plain),
        *(Method("causal", "sequential", "global", s) for s in ("gaussian", "matched", "real")),
        *(Method("causal", "sequential", "global", s, "swaps") for s in ("matched", "real")),
    ]
    run = partial(compare_methods, seeds=5, output=Path(__file__).parents[1] / "results")
    run(task(), methods, ratios=[0.25, 0.5, 0.7], command=f"python {sys.argv[0]}")


if __name__ == "__main__":
    main()
