"""Criteria side by side: one task, one graph, one set of inputs and scores; everything crossed."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from infoslice.comparison.display import markdown, plot, text
from infoslice.comparison.results import Method, Results, Row
from infoslice.comparison.runner import Runner, drawn, seeded
from infoslice.comparison.task import Task, criterion_of, load_task, ratio_name
from infoslice.criteria import Criterion
from infoslice.ops import build_info
from infoslice.progress import track
from infoslice.pruner import Compensation, Refinement
from infoslice.selection import Allocation, Budget, check_ratio

__all__ = ["Method", "Row", "Task", "compare", "compare_methods", "load_task", "plot", "text"]


def compare(
    task: Task,
    *,
    criteria: Iterable[str | Criterion] = ("causal", "random"),
    compensations: Iterable[str | Sequence[str]] = ("none", "sequential"),
    allocations: Iterable[str] = ("global",),
    refinements: Iterable[str] = ("none",),
    ratios: Iterable[float | Budget] = (0.25, 0.5),
    sources: Iterable[str] | None = None,
    seeds: int | Iterable[int] = 1,
    output: Path | str | None = None,
    command: str = "",
    show_progress: bool = True,
) -> list[Row]:
    """Prune the task's model in every combination of the choices and evaluate what is left.

    See :func:`compare_methods` for how it is done and what is written.

    Args:
        task: model, inputs and evaluation.
        criteria: names, with options after a colon (``"causal:score=marginal,greedy=False"``), or
            functions.
        compensations: as :func:`infoslice.prune` takes them; ``"merge+batch_norm"`` is both.
        allocations: as :func:`infoslice.prune` takes them.
        refinements: as :func:`infoslice.prune` takes them.
        ratios: shares of the channels to remove, or budgets (``{"macs": "60%"}``).
        sources: of the task's; by default all.
        seeds: how many (0, 1, ...) or which.
        output: folder for the files.
        command: noted in the files.
        show_progress: a bar on standard error, if that is a terminal.
    """
    functions = dict(map(criterion_of, criteria))
    compensated = [c if isinstance(c, str) else "+".join(c) for c in compensations]
    chosen = [
        Method(*names)
        for names in itertools.product(
            functions, compensated, allocations, sources or task.sources, refinements
        )
    ]
    return compare_methods(
        task,
        chosen,
        functions=functions,
        ratios=ratios,
        seeds=seeds,
        output=output,
        command=command,
        show_progress=show_progress,
    )


def compare_methods(
    task: Task,
    methods: Sequence[Method],
    *,
    functions: Mapping[str, Criterion] | None = None,
    ratios: Iterable[float | Budget] = (0.25, 0.5),
    seeds: int | Iterable[int] = 1,
    output: Path | str | None = None,
    command: str = "",
    show_progress: bool = True,
) -> list[Row]:
    """Prune the task's model by each method at each ratio with each seed, and evaluate it.

    The network is traced once. Synthetic inputs are made once for each source and seed, and shared;
    so are the scores, unless the allocation has each group scored on what the already pruned part
    passes on (``"uniform"``). Equal arguments give equal rows on one machine, timings apart. A seed
    is run only where it can matter: the criterion has an argument ``seed``, or the source is a
    perturbation or a function. A run that never looked at its inputs is recorded with the source
    ``"none"`` and stands for all sources.

    With ``output``, every row is in ``compare-<task>.csv`` as soon as it is known, and a call that
    was stopped takes up where it was: rows that are there are not computed again, runs that failed
    are tried anew. At the end ``compare-<task>.md`` and, where matplotlib is installed,
    ``compare-<task>.png`` are written. The first lines of the file tell task, versions, machine,
    commit and command; what the functions of a task do cannot be told: after changing them choose
    another folder.

    Args:
        task: model, inputs and evaluation.
        methods: what to compare.
        functions: criteria that are not in :data:`infoslice.criteria.CRITERIA`, by the name that
            the methods call them.
        ratios: shares of the channels to remove, in [0, 1), or budgets.
        seeds: how many (0, 1, ...) or which.
        output: folder for the files, made if it is not there.
        command: noted in the files.
        show_progress: a bar on standard error, if that is a terminal.

    Returns:
        The unpruned network, then one row for each run asked for; one that failed holds its error.

    Raises:
        ValueError: a choice that does not exist; files of another task or of other versions.
        TraceError: the model cannot be traced.
    """
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    sizes = {ratio_name(ratio): ratio for ratio in ratios}
    known = dict(functions or {})
    known.update(criterion_of(m.criterion) for m in methods if m.criterion not in known)
    _check(task, methods, list(sizes.values()), listed)
    results = _open(task, output, command)
    runner = Runner(task, known, results, results.header["commit"], show_progress)
    asked = [runner.unpruned()]
    wanted = [
        (method, ratio, seed)
        for seed in listed
        for source in dict.fromkeys(m.source for m in methods)
        # first what may turn out to look at no inputs, so that it is not repeated in vain
        for method in sorted(methods, key=lambda m: m.compensation != "none")
        for ratio in sizes
        if method.source == source
        if seed == listed[0] or seeded(known[method.criterion]) or drawn(task, source)
    ]
    for method, ratio, seed in track(wanted, "comparing", show=show_progress):
        asked.append(runner.row(method, ratio, sizes[ratio], seed, listed[0]))
    if results.path is not None:
        page = markdown(results.rows, results.header, task.lower_is_better)
        _write(results.path.with_suffix(".md"), page)
        drawing = results.path.with_suffix(".png")
        plot(drawing, results.rows, title=task.name, lower_is_better=task.lower_is_better)
    return list({row.key: row for row in asked}.values())


def _check(
    task: Task, methods: Sequence[Method], ratios: Sequence[float | Budget], seeds: Sequence[int]
) -> None:
    for ratio in ratios:
        if not isinstance(ratio, Mapping):
            check_ratio("compare", "ratios", ratio)
    if not methods or not ratios or not seeds:
        raise ValueError("compare: expected at least one method, one ratio and one seed")
    for method in methods:
        for name, got, allowed in (
            ("compensations", method.compensation.split("+"), get_args(Compensation)),
            ("allocations", [method.allocation], get_args(Allocation)),
            ("sources", [method.source], tuple(task.sources)),
            ("refinements", [method.refinement], get_args(Refinement)),
        ):
            for value in got:
                if value not in allowed:
                    raise ValueError(
                        f"compare: argument {name}: expected some of {allowed}, got {value!r}"
                    )


def _open(task: Task, output: Path | str | None, command: str) -> Results:
    if not re.fullmatch(r"\w[\w.-]*", task.name):
        raise ValueError(f"compare: argument task: expected a name for files, got {task.name!r}")
    sources = {n: v if isinstance(v, str) else "given" for n, v in task.sources.items()}
    facts = {
        "sources": sources, "ignored_layers": list(task.ignored_layers),
        "options": dict(task.options), "sha256": task.fingerprint(),
    }  # fmt: skip
    header = {
        "task": f"{task.name} {json.dumps(facts, default=repr, sort_keys=True)}",
        "versions": f"infoslice {build_info()['version']}, torch {torch.__version__}",
        "machine": _machine(),
        "commit": _commit(),
        "command": command or "called from Python",
    }
    if output is None:
        return Results(None, header, ())
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    return Results(folder / f"compare-{task.name}.csv", header, ("task", "versions"))


def _machine() -> str:
    try:
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.findall(r"^model name\s*:\s*(.+)$", cpus, re.MULTILINE)[0]
    except (OSError, IndexError):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} CPUs, {model}; Python {platform.python_version()}"


def _commit() -> str:
    """Of the checkout that this package runs from; empty where it was installed."""
    folder = Path(__file__).parents[1]
    git = ["git", "-C", str(folder)]
    try:
        say = partial(subprocess.run, capture_output=True, text=True, check=True)
        if say([*git, "rev-parse", "--show-prefix"]).stdout.strip() != "python/infoslice/":
            return ""
        return str(say([*git, "describe", "--always", "--dirty"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return ""


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)
