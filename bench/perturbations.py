"""What perturbations are worth, on two small cases: the tables of docs/perturbation.md.

    python bench/perturbations.py perceptrons   # closed-form moments against samples
    python bench/perturbations.py vision        # noise at the norms of a vision transformer

The second needs what ``bench/comparisons/dinov2_small.py`` and ``fashion_mnist.py`` there need.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import infoslice
from infoslice.demo.train import read
from infoslice.perturbation import Inputs
from infoslice.perturbation.propagation import propagate
from infoslice.statistics import collect

sys.path.append(str(Path(__file__).parent / "comparisons"))


def perceptrons() -> None:
    """Relative Frobenius distance of covariances by layer, six ReLUs deep."""
    for width in (32, 128, 512):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs in (64, *[width] * 5):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        model = nn.Sequential(*layers, nn.Linear(width, 10))
        moments = propagate(infoslice.trace(model, torch.zeros(1, 64)), model)
        x = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(1))
        sampled = collect(model, Inputs.of(x), list(moments), batch_size=8192)
        distances = [
            float(
                (m.covariance_x - sampled[n].covariance_x).norm() / sampled[n].covariance_x.norm()
            )
            for n, m in moments.items()
        ]
        print(width, *(f"{distance:.3f}" for distance in distances), flush=True)


def vision(seeds: int = 5) -> None:
    """A quarter of three MLPs removed: error of the output tokens relative to their spread."""
    import dinov2_small
    from fashion_mnist import DATASET

    def images(split: str, count: int) -> Tensor:
        pixels = read(Path(DATASET), split)[0][:count, None].float().expand(-1, 3, -1, -1) / 255
        pixels = F.interpolate(pixels, (56, 56), mode="bicubic", align_corners=False).clamp(0, 1)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    class AllTokens(dinov2_small.VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:
            return self.tokens(x)

    model, shown = AllTokens(), images("t10k", 256)
    model.load_state_dict(dinov2_small.load().state_dict())
    model.blocks = model.blocks[:3]
    model.eval()
    whole = [n for n in dict(model.named_modules()) if ".attention." in n or n == "patch"]
    with torch.no_grad():
        before = model(shown)
    sources = {
        "real": {"data": images("train", 128)},
        "input": {"injection": "input"},
        "norm": {"injection": "norm"},
        "layer": {"injection": "layer"},
    }
    for seed in range(seeds):
        for name, options in sources.items():
            result = infoslice.prune(
                model, shown[:1], criterion="obs", compensation="least_squares", samples=128,
                allocation="uniform", pruning_ratio=0.25, perturbation="gaussian", seed=seed,
                ignored_layers=whole, show_progress=False, **options,
            )  # fmt: skip
            with torch.no_grad():
                error = result.model(shown) - before
            spread = (before - before.mean((0, 1))).norm()
            print(seed, name, f"{float(error.norm() / spread):.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"perceptrons": perceptrons, "vision": vision}[sys.argv[1]]()
