"""What pruning did: layer by layer and in total, as numbers and as text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from infoslice.perturbation import Inputs, evaluating

__all__ = ["LayerReport", "Report", "Totals", "latencies", "table", "totals"]


@dataclass(frozen=True)
class LayerReport:
    """One layer that was cut.

    ``nats``: information between what it reads and its noisy output, over all its channels and over
    those kept (see :class:`infoslice.group_statistics.Joint`); None where not measured.
    """

    name: str
    inputs: int
    inputs_kept: int
    outputs: int
    outputs_kept: int
    nats: float | None = None
    nats_kept: float | None = None


@dataclass(frozen=True)
class Totals:
    """Of a whole model: parameters, multiply-accumulates and seconds of one forward.

    Multiply-accumulates are those of :meth:`infoslice.graph.Costs.macs`.
    """

    parameters: int
    macs: int
    latency: float


@dataclass(frozen=True)
class Report:
    """What :func:`infoslice.prune` did.

    ``perturbation``: what was put in; ``left_whole``: module path -> why its channels stay;
    ``not_refitted``: layer -> why its weights are the old ones; ``not_refined``: group -> why its
    selection is that of the criterion alone.
    """

    layers: tuple[LayerReport, ...]
    before: Totals
    after: Totals
    perturbation: str
    left_whole: Mapping[str, str] = field(default_factory=dict)
    not_refitted: Mapping[str, str] = field(default_factory=dict)
    not_refined: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [["layer", "reads", "writes", "nats", "kept"]]
        for layer in self.layers:
            known = layer.nats is not None and layer.nats_kept is not None
            rows.append(
                [
                    layer.name,
                    _change(layer.inputs, layer.inputs_kept),
                    _change(layer.outputs, layer.outputs_kept),
                    f"{layer.nats:.3f}" if known else "",
                    f"{layer.nats_kept:.3f}" if known else "",
                ]
            )
        lines = [table(rows)]
        before, after = self.before, self.after
        for title, old, new, unit in (
            ("parameters", before.parameters, after.parameters, ""),
            ("MACs", before.macs, after.macs, ""),
            ("latency", before.latency * 1e3, after.latency * 1e3, " ms"),
        ):
            share = f" ({100 * (new / old - 1):+.1f} %)" if old else ""
            form = "{:.2f}" if unit else "{:,}"
            lines.append(f"{title}: {form.format(old)} -> {form.format(new)}{unit}{share}")
        lines.append(f"perturbation: {self.perturbation}")
        for title, listed in (
            ("left whole", self.left_whole),
            ("not refitted", self.not_refitted),
            ("not refined", self.not_refined),
        ):
            lines.extend(f"{title}: {name or '(model)'}: {why}" for name, why in listed.items())
        return "\n".join(lines)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns, numbers to the right; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def latencies(
    models: Sequence[nn.Module], inputs: Inputs, *, seconds: float = 0.2, most: int = 50
) -> list[float]:
    """Median seconds of one forward of each model in eval mode; the models take turns.

    At least three rounds, then as many as fit into ``seconds`` but at most ``most``.
    """
    devices = {t.device for t in inputs.tensors() if t.device.type == "cuda"}
    taken: list[list[float]] = [[] for _ in models]
    start = time.perf_counter()
    with torch.no_grad():
        for model in models:  # once to warm up
            with evaluating(model):
                model(*inputs.args, **inputs.kwargs)
        for done in range(most):
            if done >= 3 and time.perf_counter() - start > seconds:
                break
            for model, times in zip(models, taken, strict=True):
                with evaluating(model):
                    begin = time.perf_counter()
                    model(*inputs.args, **inputs.kwargs)
                    for device in devices:
                        torch.cuda.synchronize(device)
                    times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in taken]


def totals(models: Sequence[nn.Module], macs: Sequence[int], inputs: Inputs) -> list[Totals]:
    """Totals of each model, timed on the same inputs."""
    speeds = latencies(models, inputs)
    return [
        Totals(sum(p.numel() for p in model.parameters()), count, latency)
        for model, count, latency in zip(models, macs, speeds, strict=True)
    ]
