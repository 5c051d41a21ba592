"""Residual networks on Fashion-MNIST, judged on its 10,000 test images.

    apt-get install dataset-fashion-mnist
    python bench/comparisons/fashion_mnist.py ratios   # the tables in bench/results:
    python bench/comparisons/fashion_mnist.py depths   # depth 14 at three ratios; depths at a half
    infoslice compare bench/comparisons/fashion_mnist.py:depth_8 --criteria causal,random

Depth counts the stem, two convolutions for each block and the linear layer, as He et al. 2016 do.
Trained weights lie in ``weights/`` as float16; those of depth 16 and 32 would be large, and are
trained when they are first asked for (two and four minutes).
"""

from __future__ import annotations

import sys
import time
from functools import cache, partial
from pathlib import Path

import carriers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.comparison import Method, Task, compare_methods
from infoslice.demo.network import Block, accuracy, standardise
from infoslice.demo.train import read

DATASET = "/usr/share/datasets/fashion-mnist"
WEIGHTS = Path(__file__).parent / "weights"
SAMPLES = 256
EPOCHS = {4: 3, 8: 3, 14: 4, 16: 3, 32: 3}


class ResidualNetwork(nn.Module):
    """Stem, three stages of blocks (width, 2 width, 4 width channels), mean, linear.

    ``depth`` counts the stem, two convolutions for each block and the linear layer, as He et al.
    2016 do; blocks are spread evenly, later stages first.
    """

    def __init__(self, depth: int, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for number in range(((depth - 2) // 2 + stage) // 3):
                outputs = width * 2**stage
                blocks.append(Block(channels, outputs, 2 if stage and not number else 1))
                channels = outputs
        self.stages = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.fc(self.stages(x).mean((2, 3)))  # type: ignore[no-any-return]


def train(depth: int, pixels: Tensor, labels: Tensor, seed: int = 0) -> ResidualNetwork:
    """AdamW with a one-cycle rate; every other batch is flipped."""
    torch.manual_seed(seed)
    model = ResidualNetwork(depth).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = EPOCHS[depth] * -(-len(labels) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.25
    )
    for _ in range(EPOCHS[depth]):
        for batch in torch.split(torch.randperm(len(labels)), 128):
            x = standardise(pixels[batch])
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(model(x), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


@cache
def images(split: str) -> tuple[Tensor, Tensor]:
    """Pixels and labels of ``train`` or ``t10k``."""
    return read(carriers.folder(DATASET, "apt-get install dataset-fashion-mnist"), split)


def load(depth: int) -> ResidualNetwork:
    """The trained network in eval mode; trains it if its weights are not there."""
    path = WEIGHTS / f"fashion_mnist_{depth}.safetensors"
    if not path.exists():
        start = time.perf_counter()
        model = train(depth, *images("train"))
        state = {
            key: (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in model.state_dict().items()
        }
        path.parent.mkdir(exist_ok=True)
        save_file(state, path)
        print(f"trained depth {depth} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    model = ResidualNetwork(depth)
    stored = load_file(path)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    return model.eval()


def draw(seed: int, samples: int) -> Tensor:
    """Training images."""
    pixels, _ = images("train")
    generator = torch.Generator().manual_seed(seed)
    return standardise(pixels[torch.randperm(len(pixels), generator=generator)[:samples]])


def task(depth: int = 14, samples: int = SAMPLES) -> Task:
    return Task(
        f"fashion_mnist_{depth}",
        load(depth),
        torch.zeros(1, 1, 28, 28),
        lambda network: accuracy(network, *images("t10k")),
        {
            "matched": "matched",
            "gaussian": "gaussian",
            "uniform": "uniform",
            "real": lambda seed: draw(seed, samples),
        },
        options={"samples": samples},
    )


depth_4, depth_8, depth_16, depth_32 = (partial(task, depth) for depth in (4, 8, 16, 32))


# As published: noise at the input, the same share of every group, nothing made up for.
PLAIN = ("none", "uniform", "gaussian")
READINGS = {
    "R1": "causal:score=marginal",
    "R2": "causal:score=pairwise",
    "R3": "causal:greedy=False",
    "R4": "causal:score=output",
}
# One by one: greedy, refitted, inputs matched, allocated by information, selection refined.
REMEDIES = (
    Method("causal", *PLAIN),
    Method("causal", "sequential", "uniform", "gaussian"),
    Method("causal", "sequential", "uniform", "matched"),
    Method("causal", "sequential", "global", "matched"),
    Method("causal", "sequential", "global", "matched", "swaps"),
)
WITH_DATA = (
    Method("causal", "sequential", "global", "real"),
    Method("causal", "sequential", "global", "real", "swaps"),
)
RANDOM = (Method("random", *PLAIN), Method("random", "sequential", "uniform", "matched"))


def main() -> None:
    torch.set_num_threads(1)
    run = partial(
        compare_methods,
        seeds=5,
        output=Path(__file__).parents[1] / "results",
        command=" ".join(["python", "bench/comparisons/fashion_mnist.py", *sys.argv[1:]]),
    )
    if "ratios" in sys.argv[1:]:
        plain = [Method(reading, *PLAIN) for reading in READINGS.values()]
        run(task(14), [*RANDOM, *plain, *REMEDIES, *WITH_DATA], ratios=[0.25, 0.5, 0.7])
    if "depths" in sys.argv[1:]:
        for depth in (8, 32, 4, 16):
            methods = [Method(READINGS["R2"], *PLAIN), REMEDIES[-1], WITH_DATA[-1]]
            run(task(depth, SAMPLES // 2), methods, ratios=[0.5])


if __name__ == "__main__":
    main()
