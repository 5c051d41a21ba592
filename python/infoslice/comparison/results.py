"""What a comparison found: rows, and the CSV file they live in."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

__all__ = ["COLUMNS", "UNPRUNED", "Method", "Results", "Row", "Summary", "summarise"]

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Method:
    """What is compared: a criterion with all that goes with it.

    ``criterion`` and ``compensation`` as in the command (``"causal:score=marginal"``,
    ``"merge+batch_norm"``); ``source``: which inputs the network saw, ``"none"`` if none at all.
    """

    criterion: str
    compensation: str = ""
    allocation: str = ""
    source: str = ""
    refinement: str = "none"

    def __str__(self) -> str:
        parts = (self.criterion, self.compensation, self.allocation, self.source)
        refined = "" if self.refinement == "none" else self.refinement
        return ", ".join(filter(None, (*parts, refined)))


@dataclass(frozen=True)
class Row:
    """One run: a method at a ratio (``"0.25"``) or a budget (``"macs=60%"``) with a seed.

    ``metrics`` as the task's evaluation returned them; ``parameters`` and ``macs`` of the smaller
    model, ``latency`` in seconds of one forward on the example inputs; ``seconds`` of pruning, the
    making of synthetic inputs apart. A run that failed has an ``error`` and no numbers.
    """

    method: Method
    ratio: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0
    latency: float = math.nan
    seconds: float = math.nan
    error: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[Method, str, int]:
        """What tells runs apart."""
        return self.method, self.ratio, self.seed


class Results:
    """Rows, kept in a CSV file that is complete after every row.

    The file begins with lines ``# title: text``. Those named in ``fixed`` say what was compared:
    rows of another task or of other versions are not mixed in.

    Raises:
        ValueError: the file is there and its ``fixed`` lines differ.
    """

    def __init__(
        self, path: Path | None, header: Mapping[str, str], fixed: Collection[str]
    ) -> None:
        self.path, self.header = path, dict(header)
        self.rows: list[Row] = []
        if path is None or not path.exists():
            return
        found, self.rows = _read(path)
        for title in fixed:
            if found.get(title) != header[title]:
                raise ValueError(
                    f"compare: argument output: expected {path.name} to be of {title} "
                    f"{header[title]}, got {found.get(title)}; remove the file or choose another "
                    f"folder"
                )
        # A file that was continued names every command, in the form in which a shell takes them.
        commands = dict.fromkeys([*found.get("command", "").split("; "), header.get("command", "")])
        self.header["command"] = "; ".join(filter(None, commands))

    def add(self, row: Row) -> None:
        """Add a row, or put it in the place of one with its key; the file follows at once."""
        self.rows = [*(old for old in self.rows if old.key != row.key), row]
        if self.path is not None:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row.metrics))
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(f"# {title}: {value}\n" for title, value in self.header.items())
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([*_KEYS, *names, *_NUMBERS, "error", "commit"])
            for row in self.rows:
                method = [getattr(row.method, f.name) for f in fields(Method)]
                metrics = [repr(row.metrics[n]) if n in row.metrics else "" for n in names]
                numbers = ["" if row.error else repr(getattr(row, n)) for n in _NUMBERS]
                writer.writerow(
                    [*method, row.ratio, row.seed, *metrics, *numbers, row.error, row.commit]
                )
        os.replace(temporary, path)


_KEYS = (*(f.name for f in fields(Method)), "ratio", "seed")
_NUMBERS = ("parameters", "macs", "latency", "seconds")
COLUMNS = {*_KEYS, *_NUMBERS, "error", "commit"}  # of the file; all others are metrics


def _read(path: Path) -> tuple[dict[str, str], list[Row]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header = {}
    while lines and lines[0].startswith("# "):
        title, _, value = lines.pop(0)[2:].rstrip("\n").partition(": ")
        header[title] = value
    rows = []
    for cells in csv.DictReader(lines):
        row = Row(
            Method(**{f.name: cells[f.name] for f in fields(Method) if f.name in cells}),
            cells["ratio"],
            int(cells["seed"]),
            error=cells["error"],
            commit=cells["commit"],
        )
        if not row.error:
            row = replace(
                row,
                metrics={n: float(v) for n, v in cells.items() if v and n not in COLUMNS},
                parameters=int(cells["parameters"]),
                macs=int(cells["macs"]),
                latency=float(cells["latency"]),
                seconds=float(cells["seconds"]),
            )
        rows.append(row)
    return header, rows


@dataclass(frozen=True)
class Summary:
    """The runs of one method at one ratio, over the seeds: means and standard deviations.

    The deviation is NaN for a single run. ``errors``: of the runs that failed, which count in
    nothing else.
    """

    method: Method
    ratio: str
    runs: int
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    parameters: float
    macs: float
    latency: float
    seconds: float
    errors: tuple[str, ...]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary for each method and ratio, in the order of the rows."""
    found: dict[tuple[Method, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.ratio), []).append(row)
    return [_summary(method, ratio, of) for (method, ratio), of in found.items()]


def _summary(method: Method, ratio: str, rows: Sequence[Row]) -> Summary:
    good = [row for row in rows if not row.error]
    values = {name: [row.metrics[name] for row in good] for row in good for name in row.metrics}

    def mean(name: str) -> float:
        return statistics.fmean(getattr(row, name) for row in good) if good else math.nan

    return Summary(
        method,
        ratio,
        len(good),
        {name: statistics.fmean(found) for name, found in values.items()},
        {name: _deviation(found) for name, found in values.items()},
        mean("parameters"),
        mean("macs"),
        mean("latency"),
        mean("seconds"),
        tuple(row.error for row in rows if row.error),
    )


def _deviation(values: Sequence[float]) -> float:
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.stdev(values) if finite else math.nan
