"""The network of the demo: a small residual CNN with batch-norm for 28x28 grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the Fashion-MNIST training pixels in [0, 1]


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of two blocks (width, 2 width, 4 width channels), mean, linear.

    Input ``[N, 1, 28, 28]``, standardised with ``MEAN`` and ``STD``; output ``[N, 10]`` logits.
    """

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            Block(width, width, 1),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 2 * width, 1),
            Block(2 * width, 4 * width, 2),
            Block(4 * width, 4 * width, 1),
        )
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.fc(self.stages(x).mean((2, 3)))  # type: ignore[no-any-return]


def standardise(pixels: Tensor) -> Tensor:
    """uint8 images ``[N, 28, 28]`` to the network's float32 input ``[N, 1, 28, 28]``."""
    return pixels.unsqueeze(1).float().div(255).sub(MEAN).div(STD)


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of the images whose largest logit is the label, in evaluation mode."""
    training = model.training
    model.eval()
    hits = 0
    for x, y in zip(torch.split(pixels, batch), torch.split(labels, batch), strict=True):
        hits += int((model(standardise(x)).argmax(1) == y).sum())
    model.train(training)
    return hits / len(labels)
