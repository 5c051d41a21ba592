"""Runs single cells of a comparison and keeps what they share."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from infoslice.comparison.results import COLUMNS, UNPRUNED, Method, Results, Row
from infoslice.comparison.task import Task
from infoslice.criteria import Criterion
from infoslice.graph import ChannelGraph, trace
from infoslice.group_statistics import GroupStatistics
from infoslice.perturbation import Inputs, Perturbation, evaluating, perturb
from infoslice.pruner import Refinement, prune
from infoslice.report import latencies
from infoslice.selection import Allocation, Budget

__all__ = ["Runner", "drawn", "seeded"]

_DEFAULTS = {name: p.default for name, p in inspect.signature(prune).parameters.items()}


class Runner:
    """Runs single cells; keeps what they share: the graph, and the inputs and scores of a seed."""

    def __init__(
        self,
        task: Task,
        functions: Mapping[str, Criterion],
        results: Results,
        commit: str,
        show_progress: bool,
    ) -> None:
        self.task, self.functions, self.results = task, functions, results
        self.show_progress, self.commit = show_progress, commit
        self._blind: set[str] = set()  # criteria that look at no statistics
        self._current: tuple[str, int] | None = None
        self._inputs: Inputs | None = None
        self._scores: dict[tuple[str, str], tuple[Tensor | Exception, float]] = {}
        self._reused = 0
        self._saved = 0.0

    @cached_property
    def graph(self) -> ChannelGraph:
        task = self.task
        return trace(task.model, task.example_inputs, ignored_layers=task.ignored_layers)

    def unpruned(self) -> Row:
        """What the whole network reaches."""
        for row in self.results.rows:
            if row.method.criterion == UNPRUNED:
                return row
        row = Row(
            Method(UNPRUNED),
            "0.0",
            0,
            self._evaluate(self.task.model),
            sum(p.numel() for p in self.task.model.parameters()),
            self.graph.costs.macs(),
            latencies([self.task.model], Inputs.of(self.task.example_inputs))[0],
            0.0,
            commit=self.commit,
        )
        self.results.add(row)
        return row

    def row(self, method: Method, name: str, ratio: float | Budget, seed: int, first: int) -> Row:
        """A row that is there already, or a new one. ``first``: of the seeds."""
        anywhere = replace(method, source="none")
        keys = [(method, name, seed), (anywhere, name, seed)]
        if not seeded(self.functions[method.criterion]):
            keys.append((anywhere, name, first))
        for row in self.results.rows:
            if row.key in keys and not row.error:
                return row
        row = self._run(method, name, ratio, seed)
        self.results.add(row)
        return row

    def _run(self, method: Method, name: str, ratio: float | Budget, seed: int) -> Row:
        if self._current != (method.source, seed):
            self._current, self._inputs, self._scores = (method.source, seed), None, {}
        self._reused, self._saved = 0, 0.0
        parts = method.compensation.split("+")
        size = {"budget": ratio} if isinstance(ratio, Mapping) else {"pruning_ratio": ratio}
        try:
            # A criterion or an evaluation may draw from torch's own generator.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                shown = self._shown(method.source, seed)
                start = time.perf_counter()
                result = prune(
                    self.task.model,
                    self.task.example_inputs,
                    **{**self.task.options, **size, **shown},
                    criterion=self._remembered(method, seed),
                    compensation=cast(Any, parts[0] if len(parts) == 1 else tuple(parts)),
                    allocation=cast(Allocation, method.allocation),
                    refinement=cast(Refinement, method.refinement),
                    seed=seed,
                    graph=self.graph,
                    show_progress=False,
                )
                seconds = time.perf_counter() - start + self._saved
                metrics = self._evaluate(result.model)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return Row(method, name, seed, error=said, commit=self.commit)
        if result.report.perturbation == "none":  # no inputs were needed, or only remembered scores
            if not self._reused:
                self._blind.add(method.criterion)
            if method.criterion in self._blind:
                method = replace(method, source="none")
        after = result.report.after
        return Row(
            method, name, seed, metrics, after.parameters, after.macs, after.latency, seconds,
            commit=self.commit,
        )  # fmt: skip

    def _shown(self, source: str, seed: int) -> dict[str, Any]:
        """Arguments of prune: inputs that are made once, or the name of a perturbation."""
        value = self.task.sources[source]
        if isinstance(value, str) and value not in get_args(Perturbation):
            return {"perturbation": value}  # refused by prune, which says what there is
        if self._inputs is None:
            self._inputs = self._make(value, seed)
        return {"data": self._inputs}

    def _make(self, value: Any, seed: int) -> Inputs:
        if callable(value):
            return Inputs.of(value(seed))
        if not isinstance(value, str):
            return Inputs.of(value)
        options = {**_DEFAULTS, **self.task.options}
        return perturb(
            self.task.model,
            self.task.example_inputs,
            cast(Perturbation, value),
            samples=options["samples"],
            match_steps=options["match_steps"],
            batch_size=options["batch_size"],
            seed=seed,
            show_progress=self.show_progress,
        )

    def _remembered(self, method: Method, seed: int) -> Criterion:
        """The criterion, computed once for each group wherever it sees the unpruned network."""
        function = self.functions[method.criterion]
        if seeded(function):
            function = partial(cast(Any, function), seed=seed)
        if method.allocation == "uniform":
            return function

        def scores(statistics: GroupStatistics, weights: Sequence[Tensor]) -> Tensor:
            key = (method.criterion, statistics.name)
            if key in self._scores:
                self._reused += 1
                self._saved += self._scores[key][1]
            else:
                start = time.perf_counter()
                found: Tensor | Exception
                try:
                    found = function(statistics, weights)
                except Exception as error:
                    found = error
                self._scores[key] = found, time.perf_counter() - start
            found = self._scores[key][0]
            if isinstance(found, Exception):
                raise found
            return found

        return scores

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model), torch.no_grad():
            found = self.task.evaluate(model)
        metrics = dict(found) if isinstance(found, Mapping) else {self.task.metric: found}
        if not metrics or COLUMNS & set(metrics):
            raise ValueError(
                f"compare: argument task: expected evaluate to return a number or numbers by names "
                f"other than {sorted(COLUMNS)}, got {list(metrics)}"
            )
        return {name: float(value) for name, value in metrics.items()}


def seeded(function: Criterion) -> bool:
    """Whether a criterion draws: it has an argument ``seed``."""
    return "seed" in inspect.signature(function).parameters


def drawn(task: Task, source: str) -> bool:
    """Whether the inputs depend on the seed."""
    value = task.sources[source]
    return isinstance(value, str) or callable(value) or task.options.get("injection") == "layer"
