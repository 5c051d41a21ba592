"""The pipeline as one call: trace, perturb, measure, score, select, refit, cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoslice.allocation import sensitivity
from infoslice.compensation.compensator import Compensation, Compensator
from infoslice.criteria import CRITERIA, Criterion
from infoslice.graph import ChannelGraph, ChannelGroup, trace
from infoslice.group_statistics import GroupStatistics, NotMeasuredError
from infoslice.measured_network import Injection, MeasuredNetwork, Target
from infoslice.perturbation import Inputs, Kind, Perturbation, perturb, resolve
from infoslice.plan_arguments import kept_channels
from infoslice.progress import track
from infoslice.refinement import swaps
from infoslice.report import Report, totals
from infoslice.selection import Allocation, Budget, best, check_ratio, select
from infoslice.statistics import Transform
from infoslice.surgery import Edit, PruningPlan, plan
from infoslice.workpiece import Workpiece

__all__ = ["Compensation", "Perturbation", "PruningResult", "Refinement", "prune"]

Refinement = Literal["none", "swaps"]
_MOST = 1 - 1e-6  # of the channels of a group: all but one


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
    pruning_ratio: float | None = None,
    budget: Budget | None = None,
    pruning_ratio_dict: Mapping[str, float] | None = None,
    criterion: str | Criterion = "causal",
    criterion_options: Mapping[str, Any] | None = None,
    allocation: Allocation | Callable[..., dict[str, Tensor]] = "global",
    max_pruning_ratio: float | None = None,
    round_to: int = 1,
    refinement: Refinement | Callable[[GroupStatistics, Tensor], Tensor] = "none",
    compensation: Compensation | Sequence[Compensation] = "sequential",
    compensation_ridge: float = 1e-2,
    perturbation: Perturbation = "auto",
    data: Any = None,
    data_weights: Tensor | None = None,
    injection: Injection = "input",
    target: Target = "pre",
    samples: int = 256,
    match_steps: int = 150,
    seed: int = 0,
    batch_size: int = 64,
    max_variables: int = 8192,
    transform: Transform | None = None,
    sampling_errors: bool = False,
    ignored_layers: Iterable[str | nn.Module] = (),
    graph: ChannelGraph | None = None,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
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
        pruning_ratio: share of the channels of all prunable groups to remove, in [0, 1); a half
            unless a budget is given.
        budget: what the smaller model may cost instead: ``{"macs": "60%"}``, ``{"parameters":
            1e6}``, ``"memory"`` in bytes, ``"latency"`` in seconds, several at once; see
            :func:`infoslice.selection.select`.
        pruning_ratio_dict: own ratios for some groups, by name, module path or pattern; 0 leaves a
            group whole. See :func:`infoslice.selection.select`.
        criterion: ``"causal"`` (:func:`infoslice.criteria.causal`) or another name in
            :data:`infoslice.criteria.CRITERIA`, or a function ``(statistics, weights) -> scores``.
        criterion_options: keyword arguments for it, as ``{"score": "pairwise"}``; or, for language
            models, ``{"curvature": "cross_entropy", "ridge": 3e-2}``.
        allocation: ``"global"``: the lowest scores of all groups go, all scored on the unpruned
            network. ``"uniform"``: the same share of each group; groups are then visited in order
            of execution, and each is scored on what the already pruned part passes on. As
            ``"global"``, but lowest first in score per cost saved: ``"per_macs"`` and
            ``"per_parameters"``; by what cutting each group alone, in the order of its scores, does
            to the output: ``"sensitivity"`` (:func:`infoslice.allocation.sensitivity`), which
            suits criteria whose scores do not compare between layers; or a function of the same
            arguments, as that one with a divergence of your own (``functools.partial``).
        max_pruning_ratio: at most this share of any one group; by default half-way from
            ``pruning_ratio`` to all of it.
        round_to: channels kept per group are rounded up to a multiple of this.
        refinement: ``"swaps"``: exchange channels of the selection as long as the error of the
            layers that read them falls, see :func:`infoslice.refinement.swaps`; or a function of
            the same arguments, such as ``functools.partial(swaps, curvature="cross_entropy")``.
            Groups whose readers cannot be measured stay as selected; the report names them.
        compensation: what the layers left do about it; one of the first three, with or without
            the others, or ``"none"``. ``"bias"``: the mean of what was removed goes into the bias
            of the layers that read it. ``"least_squares"``: each of them is refitted to give the
            original's outputs on the inputs left, in one shot from the statistics of the original.
            ``"sequential"``: every layer behind the first cut is refitted, in order of execution,
            to give on what the pruned and refitted layers before it pass on the outputs that the
            original computes. ``"batch_norm"``: batch-norm statistics are taken anew. ``"merge"``
            (not beside ``"bias"``): each channel removed is replaced by the one that is most like
            it, see :func:`infoslice.criteria.merges`; needs no data.
        compensation_ridge: pull towards the old weights, see
            :func:`infoslice.compensation.refit_`.
        perturbation: ``"gaussian"`` or ``"uniform"`` noise of variance one; ``"matched"``: Gaussian
            noise fitted until the batch-norm layers see their running statistics; for models that
            read tokens, sequences as long as the example: ``"tokens"``, uniform ids, or
            ``"generated"``, text that the model writes itself. ``"auto"``: generated if the model
            predicts the next token, tokens if it reads tokens and does not, else matched if it
            holds running statistics, else Gaussian. The report says which it was.
        data: real inputs (as ``example_inputs``, any number of samples) in place of noise.
        data_weights: of the samples of ``data`` or of their positions, >= 0, ``[N]`` or ``[N, T]``:
            what has weight 0 counts neither for scores nor for refits. By default the padding mask,
            if ``data`` hold an ``attention_mask`` ``[N, T]``.
        injection: perturb the network's ``"input"``; or every ``"layer"`` by noise of its own, or
            what every layer norm and RMS norm reads (``"norm"``,
            :func:`infoslice.perturbation.norms.noise_at_norms`). The last two count for scores and
            for compensation ``"least_squares"`` and ``"bias"``: ``"sequential"`` propagates the
            input.
        target: information about the plain output of a layer (``"pre"`` activation), or about what
            its batch norm and activation make of it (``"post"``).
        samples: of the perturbation.
        match_steps: of the fit, see :func:`infoslice.perturbation.match`.
        seed: of the perturbation.
        batch_size: samples per forward; bounds the memory of activations.
        max_variables: a layer that reads more variables (channels times receptive field) is not
            measured: its covariance would need ``8 * variables^2`` bytes a few times over.
        transform: ``"copula"``: informations are those of normal scores, whatever the distribution
            of a channel (:class:`infoslice.statistics.Copula`). For criteria that read informations
            (``"causal"``, ``"greedy_mi"``); those that read errors of outputs refuse it.
            Compensation is not touched.
        sampling_errors: measure how the samples cluster and their fourth moments as well: criteria
            then correct and shrink for the effective number of independent samples
            (:attr:`infoslice.Moments.effective_count`), and can shrink as Ledoit and Wolf do.
        ignored_layers: module paths or modules that stay whole.
        graph: of this model, from :func:`infoslice.trace`, to save tracing it again;
            ``ignored_layers`` is then that graph's.
        inplace: cut ``model`` itself; else it stays as it is.
        optimizer: of ``model``, cut along with it; needs ``inplace``. See
            :meth:`infoslice.PruningPlan.apply`.
        show_progress: bars on standard error, if that is a terminal.

    Returns:
        The smaller model with the plan, the edits and the report.

    Raises:
        TraceError: the model cannot be traced.
        ValueError: an argument out of range; activations that are NaN or infinite; a criterion that
            returns anything but one finite number per channel. The model is then unchanged.
        TypeError: inputs of the wrong kind.
    """
    if optimizer is not None and not inplace:
        raise ValueError("prune: argument optimizer: expected None unless inplace is True")
    if pruning_ratio is None and budget is None:
        pruning_ratio = 0.5
    elif pruning_ratio is not None and budget is not None:
        raise ValueError("prune: arguments pruning_ratio and budget: expected one of the two")
    for name, ratio in (("pruning_ratio", pruning_ratio), ("max_pruning_ratio", max_pruning_ratio)):
        if ratio is not None:
            check_ratio("prune", name, ratio)
    measured_by = sensitivity
    if callable(allocation):
        measured_by, allocation = allocation, "sensitivity"
    exchange: Callable[[GroupStatistics, Tensor], Tensor] = swaps
    if callable(refinement):
        exchange, refinement = refinement, "swaps"
    for name, value, allowed in (
        ("allocation", allocation, get_args(Allocation)),
        ("refinement", refinement, get_args(Refinement)),
        ("perturbation", perturbation, get_args(Perturbation)),
        ("injection", injection, get_args(Injection)),
        ("target", target, get_args(Target)),
        ("transform", transform, (None, *get_args(Transform))),
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
    if data_weights is not None and data is None:
        raise ValueError("prune: argument data_weights: expected None without data")
    given = None if data is None else _weighted(data, data_weights)
    compensations = _compensations(compensation)
    scored_by = _criterion(criterion, criterion_options or {})
    if graph is None:
        graph = trace(model, example_inputs, ignored_layers=ignored_layers)
    if graph.forward_fn is not None:
        raise ValueError(
            "prune: argument graph: expected one traced without forward_fn, since prune calls the "
            "model itself; wrap the model in a module whose forward does what that function does"
        )
    kind: Kind = "uniform" if perturbation == "uniform" else "gaussian"

    @cache
    def chosen_perturbation() -> Perturbation:
        return resolve(model, example_inputs, perturbation)

    @cache
    def inputs() -> Inputs:
        if given is not None:
            return given
        return perturb(
            model, example_inputs, chosen_perturbation(), samples=samples, match_steps=match_steps,
            batch_size=batch_size, seed=seed, show_progress=show_progress,
        )  # fmt: skip

    network = MeasuredNetwork(
        graph=graph,
        original=model,
        pruned=copy.deepcopy(model),
        inputs=inputs,
        injection=injection,
        kind=kind,
        seed=seed,
        target=target,
        batch_size=batch_size,
        max_variables=max_variables,
        transform=transform,
        sampling_errors=sampling_errors,
    )
    work = Workpiece(network)
    chosen = partial(
        select,
        pruning_ratio=pruning_ratio,
        budget=budget,
        graph=graph,
        pruning_ratio_dict=pruning_ratio_dict,
        allocation=allocation,
        max_pruning_ratio=max_pruning_ratio,
        round_to=round_to,
    )
    # The same share of each group does not depend on scores; a budget out of reach fails here.
    blank = {group.name: torch.zeros(group.channels) for group in graph.prunable}
    widths = {name: len(kept) for name, kept in chosen(blank).items()}
    # Groups that stay whole at any ratio need no scores.
    least = chosen(blank, pruning_ratio=_MOST, budget=None, allocation="uniform",
                   max_pruning_ratio=_MOST)  # fmt: skip
    fixed = {name for name, kept in least.items() if len(kept) == len(blank[name])}
    compensator = Compensator(work, compensations, compensation_ridge)
    not_refined: dict[str, str] = {}

    def decide(group: ChannelGroup, keep: Tensor, statistics: GroupStatistics) -> None:
        if refinement == "swaps":
            try:
                with network.on_device():
                    refined = kept_channels(exchange(statistics, keep), "keep", group)
            except NotMeasuredError as error:
                not_refined[group.name], refined = str(error), keep
            if len(refined) != len(keep):
                raise ValueError(
                    f"prune: argument refinement: expected a function that keeps {len(keep)} "
                    f"channels of group '{group.name}', got {len(refined)}"
                )
            keep = refined
        compensator.decide(group, keep, statistics)

    with network:
        if allocation != "uniform":
            groups = [group for group in graph.prunable if group.name not in fixed]
            statistics: dict[str, GroupStatistics] = {}
            scores: dict[str, Tensor] = {}
            portions = network.passes(groups)
            for portion in portions:
                measured = network.statistics(portion)
                for group in portion:
                    found = work.score(group, measured[group.name], scored_by)
                    if found is not None:
                        scores[group.name] = found
                # What does not fit into memory together is let go, and measured anew if asked for.
                statistics |= measured if len(portions) == 1 else network.statistics(portion)
            if allocation == "sensitivity":
                again = lru_cache(maxsize=1)(lambda group: network.statistics([group])[group.name])
                at_hand = again if len(portions) > 1 else lambda group: statistics[group.name]
                scores = measured_by(
                    graph, model, inputs(), scores, batch_size=batch_size,
                    cut=lambda group, gone: compensator.alone(group, gone, at_hand(group)),
                    show_progress=show_progress,
                )  # fmt: skip
            keep = chosen(scores)
            for group in groups:
                if group.name in keep:
                    decide(group, keep[group.name], statistics.pop(group.name))
        for layer in track(graph.layers, "pruning layer by layer", show=show_progress):
            compensator.approach(layer)
            for group in graph.prunable:
                if layer not in group.consumers or group.name in work.seen:
                    continue
                if allocation != "uniform" or widths[group.name] == group.channels:
                    continue
                here = network.statistics_at(group, layer)
                found = work.score(group, here, scored_by)
                if found is not None:
                    decide(group, best(found, widths[group.name]), here)
            compensator.visit(layer)
        compensator.finish()
    cut = plan(graph, keep=work.keep)
    smaller = cut.apply(network.pruned, inplace=True)
    macs = [graph.costs.macs(), graph.costs.macs(cut.keep)]
    before, after = totals([model, smaller.model], macs, Inputs.of(example_inputs))
    put_in = "none"
    if inputs.cache_info().currsize:
        put_in = "data" if data is not None else chosen_perturbation()
    report = Report(
        layers=tuple(work.layer_reports(cut)),
        before=before,
        after=after,
        perturbation=put_in,
        left_whole={**graph.whole, **work.left_whole},
        not_refitted=compensator.not_refitted,
        not_refined=not_refined,
    )
    if inplace:
        cut.apply(model, inplace=True, optimizer=optimizer)
        model.load_state_dict(smaller.model.state_dict())
        return PruningResult(model, cut, smaller.edits, report)
    return PruningResult(smaller.model, cut, smaller.edits, report)


def _weighted(data: Any, weights: Tensor | None) -> Inputs:
    found = Inputs.of(data, weights)
    mask = found.kwargs.get("attention_mask")
    if found.weights is None and isinstance(mask, Tensor) and mask.dim() == 2:
        return Inputs.of(found, mask)
    return found


def _compensations(given: Compensation | Sequence[Compensation]) -> frozenset[Compensation]:
    names = (given,) if isinstance(given, str) else tuple(given)
    allowed = get_args(Compensation)
    fits = {"bias", "least_squares", "sequential"}
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"prune: argument compensation: expected one of {allowed}, got {name!r}"
            )
    twice = len(fits.intersection(names)) > 1 or {"bias", "merge"} <= set(names)
    if twice or ("none" in names and len(names) > 1):
        raise ValueError(
            f"prune: argument compensation: expected at most one of {sorted(fits)}, not 'bias' "
            f"beside 'merge', and nothing beside 'none', got {names}"
        )
    return frozenset(names)


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
