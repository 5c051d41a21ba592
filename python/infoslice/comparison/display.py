"""Comparisons as people look at them: tables and plots."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from infoslice.comparison.results import UNPRUNED, Method, Row, Summary, summarise
from infoslice.report import table

__all__ = ["markdown", "plot", "text"]


def text(rows: Sequence[Row], lower_is_better: Collection[str] = ()) -> str:
    """A table for each ratio, the best method first; then what failed and why."""
    parts = [f"{title}\n\n{table(cells)}" for title, cells in _tables(rows, lower_is_better)]
    return "\n\n".join([*parts, *_failures(rows)])


def markdown(
    rows: Sequence[Row], header: Mapping[str, str], lower_is_better: Collection[str] = ()
) -> str:
    """The same as a page: what was compared, then the tables."""
    name = header.get("task", "").partition(" ")[0]
    parts = [f"# Comparison: {name}" if name else "# Comparison"]
    parts.append("\n".join(f"- {title}: `{value}`" for title, value in header.items()))
    for title, cells in _tables(rows, lower_is_better):
        lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
        listed = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{listed}")
    parts.extend(_failures(rows))
    return "\n\n".join(parts) + "\n"


def _tables(
    rows: Sequence[Row], lower_is_better: Collection[str]
) -> list[tuple[str, list[list[str]]]]:
    every = summarise(rows)
    dense = [s for s in every if s.method.criterion == UNPRUNED]
    pruned = [s for s in every if s.method.criterion != UNPRUNED]
    names = list(dict.fromkeys(name for s in every for name in s.mean))
    varied = [
        f.name
        for f in fields(Method)
        if f.name == "criterion" or len({getattr(s.method, f.name) for s in pruned}) > 1
    ]
    tables = []
    for ratio in dict.fromkeys(s.ratio for s in pruned):
        here = [s for s in pruned if s.ratio == ratio]
        here.sort(key=lambda s: _rank(s, names, lower_is_better))
        same = [
            f"{f.name} {getattr(here[0].method, f.name)}"
            for f in fields(Method)
            if f.name not in varied and getattr(here[0].method, f.name) not in ("", "none")
        ]
        cells = [[*varied, *names, "parameters", "MACs", "latency", "took", "runs"]]
        cells.extend(_line(s, varied, names) for s in (*dense, *here))
        tables.append((", ".join([f"cut {_percent(ratio)}", *same]), cells))
    if not tables and dense:
        cells = [["criterion", *names, "parameters", "MACs", "latency", "took", "runs"]]
        tables.append((UNPRUNED, [*cells, *(_line(s, ["criterion"], names) for s in dense)]))
    return tables


def _percent(ratio: str) -> str:
    try:
        return f"{100 * float(ratio):g} % of the channels"
    except ValueError:
        return f"to {ratio}"


def _rank(
    summary: Summary, names: Sequence[str], lower_is_better: Collection[str]
) -> tuple[bool, float]:
    value = summary.mean.get(names[0], math.nan) if names else math.nan
    if math.isnan(value):
        return True, 0.0
    return False, value if names[0] in lower_is_better else -value


def _line(summary: Summary, varied: Sequence[str], names: Sequence[str]) -> list[str]:
    method = [getattr(summary.method, name) for name in varied]
    if summary.method.criterion == UNPRUNED:
        method = [UNPRUNED, *("" for _ in method[1:])]
    failed = f" + {len(summary.errors)} failed" if summary.errors else ""
    if not summary.runs:
        return [*method, *("failed" for _ in names), "", "", "", "", f"0{failed}"]
    return [
        *method,
        *(_value(summary.mean[n], summary.deviation[n]) for n in names),
        f"{summary.parameters:,.0f}",
        f"{summary.macs / 1e6:,.2f} M",
        f"{summary.latency * 1e3:.2f} ms",
        "" if summary.method.criterion == UNPRUNED else f"{summary.seconds:.1f} s",
        f"{summary.runs}{failed}",
    ]


def _value(mean: float, deviation: float) -> str:
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def _failures(rows: Iterable[Row]) -> list[str]:
    failed = [f"- {r.method}, ratio {r.ratio}, seed {r.seed}: {r.error}" for r in rows if r.error]
    return ["\n".join(["failed:", *failed])] if failed else []


def plot(
    path: Path, rows: Sequence[Row], *, title: str = "", lower_is_better: Collection[str] = ()
) -> bool:
    """The first metric against the parameters left, and below against multiply-accumulates.

    A column for each compensation, allocation, refinement and source; lines are means over the
    seeds, bands one standard deviation to either side. Runs with a budget of parameters are not
    drawn against multiply-accumulates, nor the other way round. Returns False, without a file,
    where matplotlib is missing or no run succeeded.
    """
    every = [s for s in summarise(rows) if s.runs]
    dense = next((s for s in every if s.method.criterion == UNPRUNED), None)
    pruned = [s for s in every if s.method.criterion != UNPRUNED]
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if dense is None or not pruned:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    metric = next(iter(dense.mean))
    panels = list(dict.fromkeys(_panel(s.method) for s in pruned if s.method.source != "none"))
    panels = panels or list(dict.fromkeys(_panel(s.method) for s in pruned))
    criteria = list(dict.fromkeys(s.method.criterion for s in pruned))
    costs = {"parameters": "parameters left (%)", "macs": "multiply-accumulates left (%)"}
    figure, grid = plt.subplots(
        len(costs), len(panels), figsize=(2.2 + 3.4 * len(panels), 6.6), sharex="row",
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for (row, cost), (column, panel) in itertools.product(enumerate(costs), enumerate(panels)):
        axes = grid[row, column]
        (other,) = costs.keys() - {cost}
        for number, criterion in enumerate(criteria):
            mine = [
                s
                for s in pruned
                if s.method.criterion == criterion
                and _panel(s.method) in (panel, (*panel[:3], "none"))
                and not s.ratio.startswith(f"{other}=")
            ]
            if mine:
                colour = f"C{number}" if number < 10 else None
                _curve(axes, [dense, *mine], metric, cost, colour)
        axes.grid(alpha=0.3)
        axes.set_xlabel(costs[cost], fontsize=9)
        if row == 0:
            axes.set_title(", ".join(filter(None, panel)), fontsize=9)
    means = [s.mean[metric] for s in every if math.isfinite(s.mean[metric])]
    if metric in lower_is_better and min(means) > 0 and max(means) > 30 * min(means):
        grid[0, 0].set_yscale("log")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        drawn, labels = axes.get_legend_handles_labels()
        handles.update({label: line for label, line in zip(labels, drawn, strict=True)})
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.supylabel(metric)
    figure.suptitle(title)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=130)
    plt.close(figure)
    os.replace(temporary, path)
    return True


def _panel(method: Method) -> tuple[str, str, str, str]:
    refined = "" if method.refinement == "none" else method.refinement
    return method.compensation, method.allocation, refined, method.source


def _curve(
    axes: Any, points: Sequence[Summary], metric: str, cost: str, colour: str | None
) -> None:
    full = getattr(points[0], cost)
    points = sorted(points, key=lambda s: -float(getattr(s, cost)))
    x = [100 * getattr(s, cost) / full for s in points]
    y = [s.mean[metric] for s in points]
    label = points[-1].method.criterion
    (line,) = axes.plot(x, y, marker="o", markersize=3, linewidth=1.3, label=label, color=colour)
    half = [0.0 if math.isnan(s.deviation[metric]) else s.deviation[metric] for s in points]
    low = [a - b for a, b in zip(y, half, strict=True)]
    high = [a + b for a, b in zip(y, half, strict=True)]
    axes.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
