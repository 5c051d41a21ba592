"""What bench/gpu.py found so far: gpu.json, and gpu.md made of it, renewed after every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEADER = (
    "| case | against | goal | reached | ours | peer | in a graph | GB/s | TFLOP/s | of the floor "
    "| error | its error | verdict |"
)


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(path.suffix + ".partial")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def load(folder: Path) -> dict[str, Any]:
    path = folder / "gpu.json"
    found: dict[str, Any] = {"machine": {}, "parts": {}, "ceilings": {}, "rows": []}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else found


def store(folder: Path, state: dict[str, Any]) -> None:
    write(folder / "gpu.json", json.dumps(state, indent=1) + "\n")
    write(folder / "gpu.md", "\n".join(lines_of(state)) + "\n")


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.4g} ms"


def line_of(row: dict[str, Any]) -> str:
    if "failed" in row:
        failed = str(row["failed"]).replace("|", "/").replace("\n", " ")
        return f"| {row['case']} | | | | | | | | | | | | FAILED: {failed} |"
    number = lambda key, form: "" if row.get(key) is None else format(row[key], form)  # noqa: E731
    goal = row.get("goal")
    cells = [
        row["case"],
        row["peer"],
        "" if goal is None else goal if isinstance(goal, str) else f"{goal:g}x",
        "" if row.get("ratio") is None else f"**{row['ratio']:.3g}x**",
        milliseconds(row["seconds"]),
        milliseconds(row.get("peer_seconds")),
        milliseconds(row.get("graph_seconds")),
        number("gigabytes_per_second", ".0f"),
        number("teraflops", ".3g"),
        number("of_the_floor", ".0%"),
        number("error", ".0e"),
        number("peer_error", ".0e"),
        row.get("verdict", ""),
    ]
    return f"| {' | '.join(cells)} |"


def lines_of(state: dict[str, Any]) -> list[str]:
    lines = ["# On a GPU", ""]
    lines += [f"- {name}: {value}" for name, value in state["machine"].items()]
    lines += [f"- ceiling, {name}: {value}" for name, value in state["ceilings"].items()]
    lines += ["", "| part | result | took |", "|---|---|---|"]
    for name, part in state["parts"].items():
        lines.append(f"| {name} | {part['result']} | {part['seconds']:.0f} s |")
    lines += ["", HEADER, "|---" * (HEADER.count("|") - 1) + "|"]
    lines += [line_of(row) for row in state["rows"]]
    failures = [f for part in state["parts"].values() for f in part.get("failures", [])]
    if failures:
        lines += ["", "## What failed", ""]
        lines += [f"- `{name}`: {why}" for name, why in failures]
    return lines
