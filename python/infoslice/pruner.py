"""The pipeline as one call: trace, perturb, measure, score, select, refit, cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from infoslice.compensation import joint_moments, refit_, refittable
from infoslice.criteria import CRITERIA, Criterion
from infoslice.graph import ChannelGraph, ChannelGroup, trace
from infoslice.graph.following import Step, following
from infoslice.group_statistics import GroupStatistics, LayerStatistics, filters
from infoslice.perturbation import Inputs, Kind, match, noise, recorded_layers
from infoslice.progress import track
from infoslice.report import LayerReport, Report, totals
from infoslice.selection import Allocation, check_ratio, select
from infoslice.statistics import Moments, collect, supported, variables, variables_per_channel
from infoslice.surgery import Edit, PruningPlan, plan

__all__ = ["Compensation", "Injection", "Perturbation", "PruningResult", "Target", "prune"]

Perturbation = Literal["auto", "matched", "gaussian", "uniform"]
Injection = Literal["input", "layer"]
Target = Literal["pre", "post"]
Compensation = Literal["least_squares", "none"]


@dataclass(frozen=True, eq=False)
class PruningResult:
    """``model`` is the smaller model, ``plan`` what was cut, ``edits`` the axes cut."""

    model: nn.Module
    plan: PruningPlan
    edits: tuple[Edit, ...]
    report: Report


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    pruning_ratio: float = 0.5,
    criterion: str | Criterion = "causal",
    criterion_options: Mapping[str, Any] | None = None,
    allocation: Allocation = "global",
    max_pruning_ratio: float | None = None,
    round_to: int = 1,
    compensation: Compensation = "least_squares",
    compensation_ridge: float = 1e-2,
    perturbation: Perturbation = "auto",
    data: Any = None,
    injection: Injection = "input",
    target: Target = "pre",
    samples: int = 256,
    match_steps: int = 150,
    seed: int = 0,
    batch_size: int = 64,
    max_variables: int = 8192,
    ignored_layers: Iterable[str | nn.Module] = (),
    graph: ChannelGraph | None = None,
    inplace: bool = False,
    show_progress: bool = True,
) -> PruningResult:
    """Remove the channels of ``model`` that carry least information. Needs no data.

    The model is traced into groups of coupled channels (:func:`infoslice.trace`); a maximum-entropy
    perturbation is put in and propagated; every channel is scored by what the layers that read it
    learn from it; the lowest scores are selected; the layers left are refitted one after the other,
    in order of execution, to give on what the pruned network feeds them the outputs that the
    original computes; and all is cut at once (:class:`infoslice.PruningPlan`).

    Args:
        model: a network of convolutions, linear layers and what stands between them. What is not
            understood is left whole and named in the report. Run in eval mode throughout.
        example_inputs: a tensor ``[N, ...]``, a tuple or list of arguments, or a dict of keyword
            arguments, for tracing, latency and the shape of the noise.
        pruning_ratio: share of the channels of all prunable groups to remove, in [0, 1).
        criterion: ``"causal"`` (:func:`infoslice.criteria.causal`), ``"l1_norm"``, ``"l2_norm"``,
            ``"random"``, or a function ``(statistics, weights) -> scores``.
        criterion_options: keyword arguments for it, as ``{"score": "pairwise"}``.
        allocation: ``"global"``: the lowest scores of all groups go, all scored on the unpruned
            network. ``"uniform"``: the same share of each group; groups are then visited in order
            of execution, and each is scored on what the already pruned part passes on.
        max_pruning_ratio: at most this share of any one group; by default half-way from
            ``pruning_ratio`` to all of it.
        round_to: channels kept per group are rounded up to a multiple of this.
        compensation: ``"least_squares"`` or ``"none"``.
        compensation_ridge: pull towards the old weights, see
            :func:`infoslice.compensation.refit_`.
        perturbation: ``"gaussian"`` or ``"uniform"`` noise of variance one; ``"matched"``: Gaussian
            noise fitted until the batch-norm layers see their running statistics;
            ``"auto"``: matched if the model holds running statistics, else Gaussian. The report
            says which it was.
        data: real inputs (as ``example_inputs``, any number of samples) in place of noise.
        injection: perturb the network's ``"input"``, or every ``"layer"`` by noise of its own.
        target: information about the plain output of a layer (``"pre"`` activation), or about what
            its batch norm and activation make of it (``"post"``).
        samples: of the perturbation.
        match_steps: of the fit, see :func:`infoslice.perturbation.match`.
        seed: of the perturbation.
        batch_size: samples per forward; bounds the memory of activations.
        max_variables: a layer that reads more variables (channels times receptive field) is not
            measured: its covariance would need ``8 * variables^2`` bytes a few times over.
        ignored_layers: module paths or modules that stay whole.
        graph: of this model, from :func:`infoslice.trace`, to save tracing it again;
            ``ignored_layers`` is then that graph's.
        inplace: cut ``model`` itself; else it stays as it is.
        show_progress: bars on standard error, if that is a terminal.

    Returns:
        The smaller model with the plan, the edits and the report.

    Raises:
        TraceError: the model cannot be traced.
        ValueError: an argument out of range; activations that are NaN or infinite; a criterion that
            returns anything but one finite number per channel. The model is then unchanged.
        TypeError: inputs of the wrong kind.
    """
    check_ratio("prune", "pruning_ratio", pruning_ratio)
    if max_pruning_ratio is not None:
        check_ratio("prune", "max_pruning_ratio", max_pruning_ratio)
    for name, value, allowed in (
        ("allocation", allocation, get_args(Allocation)),
        ("compensation", compensation, get_args(Compensation)),
        ("perturbation", perturbation, get_args(Perturbation)),
        ("injection", injection, get_args(Injection)),
        ("target", target, get_args(Target)),
    ):
        if value not in allowed:
            raise ValueError(f"prune: argument {name}: expected one of {allowed}, got {value!r}")
    for name, count in (
        ("round_to", round_to), ("batch_size", batch_size), ("max_variables", max_variables)
    ):  # fmt: skip
        if count < 1:
            raise ValueError(f"prune: argument {name}: expected at least 1, got {count}")
    if not compensation_ridge > 0:
        raise ValueError(
            f"prune: argument compensation_ridge: expected > 0, got {compensation_ridge}"
        )
    scored_by = _criterion(criterion, criterion_options or {})
    if graph is None:
        graph = trace(model, example_inputs, ignored_layers=ignored_layers)
    if perturbation == "auto":
        perturbation = "matched" if recorded_layers(model) else "gaussian"
    kind: Kind = "uniform" if perturbation == "uniform" else "gaussian"

    @cache
    def inputs() -> Inputs:
        if data is not None:
            return Inputs.of(data)
        start = noise(example_inputs, samples, kind=kind, seed=seed)
        if perturbation != "matched":
            return start
        return match(
            model, start, steps=match_steps, batch_size=batch_size, show_progress=show_progress
        )

    work = _Work(
        graph=graph,
        original=model,
        pruned=copy.deepcopy(model),
        inputs=inputs,
        steps=following(graph),
        injection=injection,
        kind=kind,
        seed=seed,
        target=target,
        batch_size=batch_size,
        max_variables=max_variables,
    )
    chosen = partial(
        select,
        pruning_ratio=pruning_ratio,
        allocation=allocation,
        max_pruning_ratio=max_pruning_ratio,
        round_to=round_to,
    )
    if allocation == "global":
        groups = [group for group in graph.prunable if work.can_score(group)]
        statistics = work.statistics(groups)
        scores = {g.name: work.score(g, statistics[g.name], scored_by) for g in groups}
        keep = chosen({name: found for name, found in scores.items() if found is not None})
        for group in groups:
            if group.name in keep:
                work.decide(group, keep[group.name], statistics[group.name])
    for layer in track(graph.layers, "pruning layer by layer", show=show_progress):
        for group in graph.prunable:
            if allocation == "global" or layer not in group.consumers or group.name in work.seen:
                continue
            if work.can_score(group):
                statistics = work.statistics([group])
                found = work.score(group, statistics[group.name], scored_by)
                if found is not None:
                    kept = chosen({group.name: found})[group.name]
                    work.decide(group, kept, statistics[group.name])
        if compensation == "least_squares":
            work.refit(layer, compensation_ridge)
    cut = plan(graph, keep=work.keep)
    smaller = cut.apply(work.pruned, inplace=True)
    before, after = totals([model, smaller.model], Inputs.of(example_inputs))
    put_in = "none" if not inputs.cache_info().currsize else perturbation
    report = Report(
        layers=tuple(work.layer_reports(cut)),
        before=before,
        after=after,
        perturbation="data" if put_in != "none" and data is not None else put_in,
        left_whole={**graph.whole, **work.left_whole},
        not_refitted=work.not_refitted,
    )
    if inplace:
        cut.apply(model, inplace=True)
        model.load_state_dict(smaller.model.state_dict())
        return PruningResult(model, cut, smaller.edits, report)
    return PruningResult(smaller.model, cut, smaller.edits, report)


def _criterion(criterion: str | Criterion, options: Mapping[str, Any]) -> Criterion:
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ValueError(
                f"prune: argument criterion: expected one of {sorted(CRITERIA)} or a function, got "
                f"{criterion!r}"
            )
        return partial(CRITERIA[criterion], **options)
    if not callable(criterion):
        raise TypeError(
            f"prune: argument criterion: expected a name or a function, got "
            f"{type(criterion).__name__}"
        )
    return partial(criterion, **options)


class _TooWideError(Exception):
    """A criterion asked for a covariance larger than the caller allows."""


class _Work:
    """The state of one call of :func:`prune`.

    ``pruned`` keeps its full size until the end: channels that were decided against are silenced by
    zeroing the weights that read them, which gives the outputs of the smaller network.
    """

    def __init__(
        self,
        *,
        graph: ChannelGraph,
        original: nn.Module,
        pruned: nn.Module,
        inputs: Callable[[], Inputs],
        steps: Mapping[str, tuple[Step, ...]],
        injection: Injection,
        kind: Kind,
        seed: int,
        target: Target,
        batch_size: int,
        max_variables: int,
    ) -> None:
        self.graph, self.original, self.pruned = graph, original, pruned
        self.inputs, self.steps, self.target = inputs, steps, target
        self.injection, self.kind, self.seed = injection, kind, seed
        self.batch_size, self.max_variables = batch_size, max_variables
        self.keep: dict[str, Tensor] = {}
        self.seen: set[str] = set()
        self.left_whole: dict[str, str] = {}
        self.not_refitted: dict[str, str] = {}
        self._known: list[tuple[ChannelGroup, GroupStatistics]] = []

    def can_score(self, group: ChannelGroup) -> bool:
        """Whether all that reads and writes the group can be measured; else say why not."""
        self.seen.add(group.name)
        for name in (*group.consumers, *group.producers):
            module = self.pruned.get_submodule(name)
            if not supported(module) or "weight" not in module._parameters:
                self.left_whole[group.name] = (
                    f"'{name}' is a {type(module).__name__}; linear layers and convolutions with "
                    f"groups=1 can be measured"
                )
                return False
        return True

    def statistics(self, groups: list[ChannelGroup]) -> dict[str, GroupStatistics]:
        """Of groups, on what the network pruned so far passes on; measured when first read."""
        names = {name for g in groups for name in (*g.consumers, *g.producers)}

        @cache
        def moments() -> Mapping[str, Moments]:
            measured = [name for name in self.graph.layers if name in names]
            return _Known(self._collect([name for name in measured if not self._wide(name)]))

        return {g.name: GroupStatistics(g, self.pruned, moments) for g in groups}

    def _collect(self, layers: list[str]) -> dict[str, Moments]:
        outputs = {}
        if self.target == "post":
            for name in layers:
                if not isinstance(self.pruned.get_submodule(name), _ConvTransposeNd):
                    outputs[name] = partial(self._activate, self.steps.get(name, ()))
        fresh = None
        if self.injection == "layer":
            generator = torch.Generator().manual_seed(self.seed)
            fresh = partial(_fresh, generator, self.kind)
        return collect(
            self.pruned,
            self.inputs(),
            layers,
            batch_size=self.batch_size,
            outputs=outputs,
            fresh_noise=fresh,
        )

    def _activate(self, steps: tuple[Step, ...], y: Tensor) -> Tensor:
        for step in steps:
            y = step.apply(self.pruned, y)
        return y

    def _wide(self, name: str) -> bool:
        layer = self.pruned.get_submodule(name)
        return variables(layer) > self.max_variables

    def score(
        self, group: ChannelGroup, statistics: GroupStatistics, criterion: Criterion
    ) -> Tensor | None:
        """Scores, checked; None and a reason if a layer is too wide to be measured."""
        try:
            scores = criterion(statistics, filters(group, self.pruned))
        except _TooWideError as error:
            self.left_whole[group.name] = (
                f"layer '{error}' reads more than max_variables = {self.max_variables} variables"
            )
            return None
        if not isinstance(scores, Tensor) or scores.shape != (group.channels,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"prune: argument criterion: expected {group.channels} scores for group "
                f"'{group.name}', got {got}"
            )
        if not bool(scores.isfinite().all()):
            raise ValueError(
                f"prune: argument criterion: expected finite scores for group '{group.name}', got "
                f"NaN or infinity"
            )
        return scores.detach().cpu()

    def decide(self, group: ChannelGroup, keep: Tensor, statistics: GroupStatistics) -> None:
        """Fix what stays of a group and silence the rest."""
        self._known.append((group, statistics))
        if statistics.measured:
            _ = statistics.consumers  # their weights are about to change
        if len(keep) == group.channels:
            return
        self.keep[group.name] = keep
        removed = torch.ones(group.channels, dtype=torch.bool)
        removed[keep] = False
        tensors = {**dict(self.pruned.named_parameters()), **dict(self.pruned.named_buffers())}
        with torch.no_grad():
            for piece in group.slices:
                if piece.role == "in":
                    tensor = tensors[piece.tensor]
                    places = piece.index_map.indices(removed.nonzero().flatten())
                    tensor.index_fill_(piece.axis, places.to(tensor.device), 0)

    def refit(self, name: str, ridge: float) -> None:
        """Refit one layer, if anything before it was cut and nothing speaks against it."""
        if not self.keep:
            return
        layer = self.pruned.get_submodule(name)
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            return
        why = self._not_refittable(name, layer)
        if why:
            self.not_refitted[name] = why
            return
        moments = joint_moments(
            self.pruned,
            self.original,
            name,
            self.inputs(),
            batch_size=self.batch_size,
            once=name in self.steps,
        )
        first = self.steps.get(name, ())[:1]
        norm = self.pruned.get_submodule(first[0].module) if first and first[0].is_norm else None
        usable = isinstance(norm, _BatchNorm) and norm.running_mean is not None
        kept = self._kept_variables(name, layer)
        refit_(layer, moments, kept, norm=cast(_BatchNorm, norm) if usable else None, ridge=ridge)

    def _not_refittable(self, name: str, layer: nn.Module) -> str:
        if not refittable(layer):
            return f"a {type(layer).__name__} of this kind is not a regression on its inputs"
        if set(layer._parameters) != {"weight", "bias"}:
            return "its parameters are not plain"
        if self._wide(name):
            return f"it reads more than max_variables = {self.max_variables} variables"
        for module_name, module in self.pruned.named_modules():
            if module is not layer and any(p is layer.weight for p in module._parameters.values()):
                return f"its weight is shared with '{module_name}'"
        for group, _ in self._known:
            if name in group.consumers and group.renormalised and group.name in self.keep:
                return f"{group.renormalised[0]} normalises over the channels that are left"
        return ""

    def _kept_variables(self, name: str, layer: nn.Module) -> Tensor:
        """Columns of the layer's matrix that are still read."""
        taps = variables_per_channel(layer)
        kept = torch.ones(variables(layer), dtype=torch.bool)
        for group, _ in self._known:
            if group.name not in self.keep or name not in group.consumers:
                continue
            removed = torch.ones(group.channels, dtype=torch.bool)
            removed[self.keep[group.name]] = False
            for piece in group.slices:
                if piece.role == "in" and piece.module == name:
                    places = piece.index_map.indices(removed.nonzero().flatten())
                    kept.view(-1, taps)[places] = False
        return kept.nonzero().flatten()

    def layer_reports(self, cut: PruningPlan) -> list[LayerReport]:
        """One line for each layer whose shape changed."""
        nats: dict[str, list[float]] = {}
        for group, statistics in self._known:
            if not statistics.measured:
                continue
            keep = self.keep.get(group.name, torch.arange(group.channels))
            for layer in statistics.consumers:
                nats.setdefault(layer.name, []).extend(_information(layer, keep))
        shapes, new = cut.shapes, cut.new_shapes()
        reports = []
        for name in self.graph.layers:
            weight = f"{name}.weight"
            if weight not in shapes or len(shapes[weight]) < 2 or shapes[weight] == new[weight]:
                continue
            out_axis = int(isinstance(self.pruned.get_submodule(name), _ConvTransposeNd))
            found = nats.get(name, [])
            once = len(found) == 2  # a layer that reads several groups has no single figure
            reports.append(
                LayerReport(
                    name,
                    shapes[weight][1 - out_axis],
                    new[weight][1 - out_axis],
                    shapes[weight][out_axis],
                    new[weight][out_axis],
                    found[0] if once else None,
                    found[1] if once else None,
                )
            )
        return reports


class _Known(dict[str, Moments]):
    """Moments by layer; a layer that was too wide to be measured is told apart."""

    def __missing__(self, name: str) -> Moments:
        raise _TooWideError(name)


def _information(layer: LayerStatistics, keep: Tensor) -> tuple[float, float]:
    """Nats between a layer's input and its noisy output: all variables, and those kept."""
    joint = layer.joint(1.0, 1e-4)
    every = torch.arange(joint.inputs)
    gone = torch.ones(len(layer.variables), dtype=torch.bool)
    gone[keep] = False
    left = torch.ones(joint.inputs, dtype=torch.bool)
    left[layer.variables[gone].flatten()] = False
    return joint.information(every), joint.information(every[left])


def _fresh(generator: torch.Generator, kind: Kind, x: Tensor) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    return cast(Tensor, noise(x, max(2, len(x)), kind=kind, seed=seed).args[0])[: len(x)]
