"""What is left of a layer whose channels repeat each other: python -m bench.redundancy.

Every source is written into two channels, each with a little noise of its own, and half of all
channels are to go. Each criterion chooses by statistics of a sample; the rest is refitted by least
squares, and the error is that of the true covariance, relative to the variance of the output. The
best choice keeps one channel of every pair.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import infoslice
from infoslice.criteria import CRITERIA
from infoslice.group_statistics import GroupStatistics, NotMeasuredError
from infoslice.group_weights import filters
from infoslice.perturbation import Inputs
from infoslice.refinement import swaps
from infoslice.selection import best
from infoslice.statistics import collect

Score = Callable[[GroupStatistics, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Draw:
    """A layer, what was measured of it, and the true covariance of its inputs."""

    statistics: GroupStatistics
    weights: tuple[Tensor, ...]
    covariance: Tensor
    weight: Tensor

    def error(self, keep: Tensor) -> float:
        """``min_V E|W X - V X_keep|^2 / E|W X|^2``."""
        s, w = self.covariance, self.weight
        cross = s[keep] @ w.T
        left = (w @ s @ w.T).trace() - (cross * torch.linalg.solve(s[keep][:, keep], cross)).sum()
        return float(left / (w @ s @ w.T).trace())


def draw(pairs: int, outputs: int, eps: float, samples: int, seed: int) -> Draw:
    """``2 pairs`` channels: a_j s_j + eps a_j n_c with sources s, own noise n, log-normal a."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    channels = 2 * pairs
    model = nn.Sequential(nn.Linear(pairs + channels, channels), nn.Linear(channels, outputs))
    model = model.double()
    scale = torch.exp(0.5 * normal(pairs)).repeat(2)[:, None]
    source = torch.eye(pairs, dtype=torch.float64).repeat(2, 1)
    private = eps * torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        written = scale * torch.cat([source, private], 1)
        model[0].weight.copy_(written)
        model[0].bias.zero_()
        model[1].weight.copy_(normal(outputs, channels))
    x = normal(samples, pairs + channels)
    group = infoslice.trace(model, x[:1]).group("0")
    found = collect(model, Inputs.of(x), ["0", "1"], batch_size=1024)
    return Draw(
        GroupStatistics(group, model, lambda: found),
        filters(group, model),
        written @ written.T,
        model[1].weight.detach().clone(),
    )


def entrants() -> dict[str, Score]:
    """Every criterion as it comes, and the variants of those that have a greedy order."""
    # MINT has one score for a whole block of neighbours, which here are not the twins.
    apart = ("causal", "obs", "mint")
    found: dict[str, Score] = {n: score for n, score in CRITERIA.items() if n not in apart}
    causal = CRITERIA["causal"]
    for score in ("marginal", "pairwise", "output"):
        found[f"causal, {score}"] = partial(causal, score=score)
    found["causal, conditional, one shot"] = partial(causal, greedy=False)
    found["**causal, conditional, greedy**"] = causal
    found["causal, the same, noise variance 1e-3"] = partial(causal, noise_variance=1e-3)
    found["obs, one shot"] = partial(CRITERIA["obs"], greedy=False)
    found["**obs, greedy**"] = CRITERIA["obs"]
    return found


def errors(of: Draw) -> dict[str, float]:
    """By criterion, half of the channels kept; NaN for one that cannot be had here."""
    half, found = of.statistics.channels // 2, {}
    for name, score in entrants().items():
        try:
            keep = best(score(of.statistics, of.weights), half)
        except NotMeasuredError:
            found[name] = float("nan")
            continue
        found[name] = of.error(keep)
        if name in ("flap", "random"):
            found[f"{name}, then swaps"] = of.error(swaps(of.statistics, keep))
    return found


def table(eps: tuple[float, ...], draws: int, pairs: int, outputs: int, samples: int) -> list[str]:
    columns = []
    for noise in eps:
        each = [errors(draw(pairs, outputs, noise, samples, seed)) for seed in range(draws)]
        columns.append({name: torch.tensor([e[name] for e in each]) for name in each[0]})
    middle = {name: float(found.mean()) for name, found in columns[len(eps) // 2].items()}
    had = [name for name, mean in middle.items() if math.isfinite(mean)]
    lines = [
        "| criterion | " + " | ".join(f"own noise {noise:g}" for noise in eps) + " |",
        "|---|" + "---|" * len(eps),
    ]
    for name in sorted(had, key=middle.__getitem__):
        cells = [f"{float(c[name].mean()):.5f} ± {float(c[name].std()):.5f}" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.redundancy", description=__doc__)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args(arguments)
    from bench.compare import machine

    lines = machine(" ".join(["python -m bench.redundancy", *arguments]))
    lines += [
        f"- 256 channels, two of each of 128 sources, 128 kept; 64 outputs; {options.samples} "
        f"samples; mean and standard deviation of {options.draws} draws",
        "",
        *table((0.3, 0.1, 0.03), options.draws, 128, 64, options.samples),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
