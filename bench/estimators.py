"""What the estimate of the covariance changes: python -m bench.estimators [folder with the images].

The causal score on the network of the demo, shown training images of Fashion-MNIST, with the plain
covariances and with what docs/statistics.md has besides: normal scores, shrinkage, the correction
of the bias. Judged on the 2,000 test images of the demo.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import infoslice
from infoslice.demo import load_network
from infoslice.demo.comparison import load_images
from infoslice.demo.network import accuracy, standardise
from infoslice.demo.train import read

ESTIMATORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias corrected, every position counts": {"criterion_options": {"bias_correction": True}},
    "OAS, every position counts": {"criterion_options": {"shrinkage": "oas"}},
    "OAS, effective count": {
        "criterion_options": {"shrinkage": "oas"}, "sampling_errors": True
    },
    "Ledoit-Wolf, effective count": {
        "criterion_options": {"shrinkage": "ledoit_wolf"}, "sampling_errors": True
    },
    "copula": {"transform": "copula"},
    "plain, behind the activation": {"target": "post"},
    "copula, behind the activation": {"transform": "copula", "target": "post"},
}  # fmt: skip
CASES = (("none", 0.25), ("sequential", 0.5), ("sequential", 0.7))


def table(folder: Path, samples: int, seeds: int) -> list[str]:
    """One row for each estimator; mean and standard deviation over the images drawn."""
    images = read(folder, "train")[0]
    pixels, labels = load_images()
    network, example = load_network(), standardise(pixels[:2])
    graph = infoslice.trace(network, example)
    lines = [
        "| covariances | " + " | ".join(f"{c}, {r:.0%}" for c, r in CASES) + " |",
        "|---|" + "---|" * len(CASES),
    ]
    for name, options in ESTIMATORS.items():
        cells = []
        for compensation, ratio in CASES:
            found = []
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                drawn = torch.randperm(len(images), generator=generator)[:samples]
                result = infoslice.prune(
                    network, example, graph=graph, data=standardise(images[drawn]),
                    pruning_ratio=ratio, compensation=compensation, show_progress=False, **options,
                )  # fmt: skip
                found.append(100 * accuracy(result.model, pixels, labels))
            cells.append(f"{mean(found):.1f} ± {stdev(found):.1f}")
            print(name, compensation, ratio, cells[-1], file=sys.stderr)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.estimators", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args(arguments)
    from bench.compare import machine

    lines = machine(" ".join(["python -m bench.estimators", *arguments]))
    lines += [
        f"- accuracy in %, {accuracy(load_network(), *load_images()):.1%} unpruned; causal score "
        f"(conditional, greedy), global allocation; {options.samples} training images; mean and "
        f"standard deviation of {options.seeds} draws",
        "",
        *table(options.folder, options.samples, options.seeds),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
