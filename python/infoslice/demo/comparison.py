"""Prunes the demo's network with no data, by every method at hand, and shows what is left of it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infoslice.comparison import Method, Row, Task, compare_methods, plot, text
from infoslice.demo.network import ResNet, accuracy
from infoslice.perturbation import match, noise
from infoslice.pruner import PruningResult, prune
from infoslice.saving import load_pruned, save_pruned

__all__ = ["BEST", "METHODS", "RATIOS", "load_images", "load_network", "run"]

RATIOS = (0.25, 0.5, 0.7)
BEST = Method("causal", "sequential", "global", "matched")
# As published: Gaussian noise, one score per channel, the same share of every group, no refit.
METHODS = (
    *(
        Method(criterion, "none", "uniform", "white noise")
        for criterion in (
            "random",
            "l1_norm",
            "causal:score=marginal",
            "causal:score=pairwise",
            "causal:greedy=False",
            "causal:score=output",
        )
    ),
    Method("causal", "sequential", "global", "white noise"),
    Method("causal", "sequential", "uniform", "matched"),
    BEST,
)


def load_network() -> ResNet:
    """The trained network, in eval mode."""
    state = load_file(Path(__file__).parent / "resnet.safetensors")
    model = ResNet()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()


def load_images() -> tuple[Tensor, Tensor]:
    """2,000 test images of Fashion-MNIST, uint8 ``[N, 28, 28]``, and their labels, int64."""
    with np.load(Path(__file__).parent / "test_images.npz") as stored:
        return torch.from_numpy(stored["pixels"]), torch.from_numpy(stored["labels"]).long()


def run(output: Path, *, fast: bool = False, show_progress: bool = True) -> list[Row]:
    """Prune, print the table, and write what came out into the folder ``output``.

    Files: ``results.json``; ``accuracy.png`` (with matplotlib); ``pruned.safetensors`` and
    ``pruned.json``, the model with half of its channels, reloaded and checked.

    Args:
        output: made if it is not there.
        fast: a smaller fit of the perturbation.
        show_progress: bars on standard error, if that is a terminal.
    """
    output.mkdir(parents=True, exist_ok=True)
    model, (pixels, labels) = load_network(), load_images()
    example = torch.zeros(1, 1, 28, 28)
    samples, steps = (96, 80) if fast else (256, 150)
    start = time.perf_counter()
    begin = noise(example, samples)
    matched = match(model, begin, steps=steps, show_progress=show_progress)
    print(
        f"fitted {samples} inputs to the recorded batch-norm statistics, starting from noise, in "
        f"{time.perf_counter() - start:.0f} s; no data is used for pruning\n"
    )
    task = Task(
        "demo",
        model,
        example,
        lambda pruned: accuracy(pruned, pixels, labels),
        {"white noise": begin, "matched": matched},
    )
    rows = compare_methods(task, METHODS, ratios=RATIOS, show_progress=show_progress)
    print(text(rows))
    _write(output / "results.json", json.dumps([asdict(row) for row in rows], indent=1))
    result = prune(model, example, data=matched, pruning_ratio=0.5, show_progress=False)
    _save(output, result, pixels)
    path = output / "accuracy.png"
    if plot(path, rows, title="Fashion-MNIST, 2,000 test images, no data and no training"):
        print(f"wrote {path}")
    else:
        print("no plot: matplotlib is missing, pip install 'infoslice[plot]'")
    return rows


def _save(output: Path, result: PruningResult, pixels: Tensor) -> None:
    """Store the pruned model, load it into a fresh network and compare."""
    weights, plan = save_pruned(result.model, result.plan, output / "pruned")
    again = load_pruned(ResNet(), weights).eval()
    _same_logits(result.model, again, pixels[:200])
    print(f"\nwrote {weights} and {plan.name}; reloaded, the outputs are identical")


def _same_logits(first: nn.Module, second: nn.Module, pixels: Tensor) -> None:
    x = pixels.unsqueeze(1).float()
    with torch.no_grad():
        if not torch.equal(first(x), second(x)):
            raise RuntimeError("demo: expected the reloaded model to give the same outputs")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
