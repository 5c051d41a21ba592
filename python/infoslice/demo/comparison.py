"""Prunes the demo's network with no data, by every method at hand, and shows what is left of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infoslice.demo.network import ResNet, accuracy
from infoslice.graph import trace
from infoslice.perturbation import match, noise
from infoslice.progress import track
from infoslice.pruner import PruningResult, prune
from infoslice.report import table
from infoslice.saving import load_pruned, save_pruned

__all__ = ["METHODS", "RATIOS", "Row", "load_images", "load_network", "run"]

RATIOS = (0.25, 0.5, 0.7)
BEST = "causal, matched + refit, global"

# As published: Gaussian noise, one score per channel, the same share of every group, no refit.
_PLAIN = {"allocation": "uniform", "compensation": "none", "perturbation": "gaussian"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "random": {"criterion": "random", **_PLAIN},
    "L1 norm": {"criterion": "l1_norm", **_PLAIN},
    "causal R1 marginal": {"criterion_options": {"score": "marginal"}, **_PLAIN},
    "causal R2 pairwise": {"criterion_options": {"score": "pairwise"}, **_PLAIN},
    "causal R3 conditional": {"criterion_options": {"greedy": False}, **_PLAIN},
    "causal R4 output": {"criterion_options": {"score": "output"}, **_PLAIN},
    "causal, white noise + refit, global": {"perturbation": "gaussian"},
    "causal, matched + refit, uniform": {"allocation": "uniform"},
    BEST: {},
}


@dataclass(frozen=True)
class Row:
    """One method at one ratio. ``seconds``: of pruning, the fit of the perturbation apart."""

    method: str
    ratio: float
    accuracy: float
    parameters: int
    macs: int
    latency: float
    seconds: float


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
    graph = trace(model, example)
    rows: list[Row] = []
    results: dict[tuple[str, float], PruningResult] = {}
    jobs = [(name, ratio) for name in METHODS for ratio in RATIOS]
    for name, ratio in track(jobs, "pruning", show=show_progress):
        options = dict(METHODS[name])
        if options.get("perturbation", "matched") == "matched":
            options["data"] = matched
        start = time.perf_counter()
        result = prune(
            model, example, pruning_ratio=ratio, samples=samples, graph=graph,
            show_progress=False, **options,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        results[name, ratio] = result
        after = result.report.after
        right = accuracy(result.model, pixels, labels)
        rows.append(Row(name, ratio, right, after.parameters, after.macs, after.latency, seconds))
    before = results[BEST, RATIOS[0]].report.before
    dense = Row(
        "unpruned", 0.0, accuracy(model, pixels, labels), before.parameters, before.macs,
        before.latency, 0.0,
    )  # fmt: skip
    print(_table(dense, rows))
    _write(output / "results.json", json.dumps([asdict(r) for r in (dense, *rows)], indent=1))
    _save(output, results[BEST, 0.5], pixels)
    _plot(output / "accuracy.png", dense, rows)
    return rows


def _table(dense: Row, rows: Sequence[Row]) -> str:
    header = ["method", "channels cut", "accuracy", "parameters", "MACs", "latency", "took"]
    cells = [header]
    for row in (dense, *rows):
        cells.append(
            [
                row.method,
                f"{row.ratio:.0%}",
                f"{100 * row.accuracy:.1f} %",
                f"{row.parameters:,}",
                f"{row.macs / 1e6:.2f} M",
                f"{row.latency * 1e3:.2f} ms",
                f"{row.seconds:.1f} s",
            ]
        )
    return table(cells)


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


def _plot(path: Path, dense: Row, rows: Sequence[Row]) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is missing, pip install 'infoslice[plot]'")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for name in METHODS:
        mine = [dense, *(row for row in rows if row.method == name)]
        axes.plot(
            [row.parameters / 1e3 for row in mine],
            [100 * row.accuracy for row in mine],
            marker="o",
            label=name,
            linewidth=2.5 if name == BEST else 1.2,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.set_xlabel("parameters (thousands)")
    axes.set_ylabel("accuracy on 2,000 test images (%)")
    axes.set_title("Fashion-MNIST, pruned with no data and no training")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    plt.close(figure)
    os.replace(temporary, path)
    print(f"wrote {path}")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
