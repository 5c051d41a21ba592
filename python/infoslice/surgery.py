"""Plan, validate, cut: from the channels to keep to a smaller model, all of it or nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from infoslice.graph.channel_graph import ChannelGraph, ChannelGroup
from infoslice.graph.check import failing_groups
from infoslice.graph.cuts import AxisCut, axis_cuts, new_shapes, set_sizes, size_cuts
from infoslice.graph.shell import is_special, named_tensors
from infoslice.graph.trace import refuse_wrapped, trace_specs
from infoslice.optimizer_state import replace_parameters, state_along
from infoslice.plan_arguments import kept_channels, unknown_group
from infoslice.plan_format import (
    decode_groups,
    decode_tensors,
    decode_tree,
    encode_groups,
    encode_tensors,
    encode_tree,
)
from infoslice.replacement import Work, batches, copy_with, replace_tensors, sliced

__all__ = ["Edit", "PruningPlan", "Surgery", "plan"]

_FORMAT = "infoslice.plan"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Edit:
    """One axis of one tensor that was cut: ``keep`` are the old positions, in order (int64).

    The shapes are those of the whole tensor before and after all of its edits.
    """

    tensor: str
    axis: int
    keep: Tensor
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]


class Surgery(NamedTuple):
    """The smaller model and what was cut."""

    model: nn.Module
    edits: tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which channels of which groups stay. Made by :func:`plan`; changes nothing until applied.

    ``keep``: group name -> channels kept (sorted, unique, int64), for the groups that are cut.
    ``groups``: those groups; ``tensors``: names, shapes and dtypes of the model planned for.
    """

    keep: Mapping[str, Tensor]
    groups: tuple[ChannelGroup, ...]
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    inputs: Any = field(repr=False)
    graph: ChannelGraph | None = field(default=None, repr=False)
    forward_fn: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes before the cut, by tensor name."""
        return {name: shape for name, (shape, _) in self.tensors.items()}

    @functools.cached_property
    def cuts(self) -> tuple[AxisCut, ...]:
        """Positions kept on every axis that is cut."""
        return axis_cuts(self.groups, self.keep, self.shapes)

    def new_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes after the cut, by tensor name, all tensors of the model."""
        return {**self.shapes, **new_shapes(self.cuts, self.shapes)}

    def validate(self, model: nn.Module, *, dtypes: bool = True) -> None:
        """Check that ``model`` is what the plan was made for; nothing is changed.

        ``dtypes=False`` lets a model of another precision pass.

        Raises:
            ValueError: names or shapes of parameters and buffers differ.
            TypeError: a dtype differs; a parameter to cut is sharded or quantised.
        """
        refuse_wrapped("PruningPlan.validate", model)
        present = dict(named_tensors(model))
        _same_names(present, self.tensors)
        for name, (shape, dtype) in self.tensors.items():
            if is_lazy(present[name]):
                raise ValueError(
                    f"PruningPlan.validate: argument model: expected initialised parameters, got "
                    f"{name} of a lazy module; run the model once first"
                )
            got = tuple(present[name].shape)
            if got != shape:
                cut = "; is it cut already?" if got == self.new_shapes()[name] else ""
                raise ValueError(
                    f"PruningPlan.validate: argument model: expected {name} of shape {shape}, got "
                    f"{got}{cut}"
                )
            if dtypes and present[name].dtype != dtype:
                raise TypeError(
                    f"PruningPlan.validate: argument model: expected {name} of {dtype}, got "
                    f"{present[name].dtype}"
                )
        owners: dict[int, str] = {}
        for name in dict.fromkeys(cut.tensor for cut in self.cuts):
            tensor = present[name]
            if is_special(tensor):
                raise TypeError(
                    f"PruningPlan.validate: argument model: expected plain tensors to cut, got "
                    f"{name} of type {type(tensor).__name__} (sharded or quantised)"
                )
            for attribute, value in vars(tensor).items():
                if isinstance(value, Tensor) and value.dim():
                    raise ValueError(
                        f"PruningPlan.validate: argument model: expected parameters whose "
                        f"attributes hold no tensors, got {name}.{attribute} of shape "
                        f"{tuple(value.shape)}; take it off, and cut it by the edit list"
                    )
            twin = owners.setdefault(tensor.untyped_storage()._cdata, name)
            if twin != name:
                raise ValueError(
                    f"PruningPlan.validate: argument model: expected tied tensors to be one "
                    f"parameter, got {twin} and {name} that only share memory"
                )

    def check(self, model: nn.Module) -> None:
        """Run a weightless copy of the smaller model on the example inputs; reads no weight.

        It must call the same operators with the same constants as the model does, and give results
        of the predicted shapes. For a plan read from JSON the model is traced again first, and must
        have the groups of the plan.

        Raises ValueError naming the groups that cannot be cut like this.
        """
        graph = self.graph
        if graph is None:
            graph = trace_specs(model, self.inputs, forward_fn=self.forward_fn)
            self._same_groups(graph)
        failing = failing_groups(graph, model, self.keep)
        if failing:
            listed = "; ".join(f"group {name}: {failure}" for name, failure in failing.items())
            raise ValueError(
                f"PruningPlan.check: argument model: expected a forward that follows its channel "
                f"counts, got a smaller copy that does not run alike: {listed}"
            )

    def _same_groups(self, graph: ChannelGraph) -> None:
        traced = {group.name: group for group in graph.groups}
        for group in self.groups:
            twin = traced.get(group.name)
            if twin is None or not twin.prunable:
                reason = "none of that name" if twin is None else f"one left whole: {twin.reason}"
                raise ValueError(
                    f"PruningPlan.check: argument model: expected the group {group.name}, got "
                    f"{reason}"
                )
            if twin != group:
                raise ValueError(
                    f"PruningPlan.check: argument model: expected the group {group.name} as "
                    f"planned, got other tensors, index maps or sizes"
                )

    def apply(
        self,
        model: nn.Module,
        *,
        inplace: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ) -> Surgery:
        """Cut ``model``: everything is checked before anything is changed.

        See :meth:`check` for what is run before any weight is read. In place at most the largest
        of the new tensors (64 MiB, if that is more) is held besides the old weights: largest first,
        each part frees what it replaces before the next is made. Memory can thus run out at the
        first part only, with the model unchanged. What others hold on to is not freed.

        Args:
            model: the model traced, or one like it.
            inplace: cut ``model`` itself; else it stays as it is and the result is a copy that
                never held the removed channels. In place, cut parameters are new Parameter objects:
                hand over the optimizer, or make it afterwards.
            optimizer: the one that trains ``model``, or all of them; in place only. Its state is
                cut along (momenta and whatever else has the shape of its parameter), and it trains
                the new parameters from here on. Schedulers and gradient scalers need nothing.

        Returns:
            The smaller model and the edits. Kept: dtype, device, memory format, requires_grad,
            ties, hooks, train/eval flags. Gradients of cut tensors are dropped. Size attributes of
            modules (``out_channels``, ``num_features``, ...) follow. Cut tensors own their memory.

        Raises:
            ValueError, TypeError: as :meth:`validate`; ValueError naming the groups if the smaller
            copy does not run as it should; an optimizer that does not hold a trainable parameter to
            cut, or with state that is not per channel. Model and optimizer are then unchanged.
        """
        optimizers = _optimizers(optimizer, inplace)
        self.validate(model)
        cuts = self.cuts
        tensors = dict(named_tensors(model))
        of_name: dict[str, list[AxisCut]] = {}
        for cut in cuts:
            of_name.setdefault(cut.tensor, []).append(cut)
        along = [(name, tensors[name]) for name in of_name]
        if inplace:
            _refuse_hooks(along)
        if optimizers:
            along += state_along(optimizers, dict(along))
        self.check(model)
        work = [(tensor, of_name[name]) for name, tensor in along]
        sizes = size_cuts(self.groups, self.keep, model)
        with torch.inference_mode(False):  # tensors made in that mode could never be trained
            if inplace:
                del tensors, along  # so that what has been replaced is freed
                for batch in batches(work):
                    _replace(model, optimizers, batch)
                result = model
            else:
                result = copy_with(model, [tensor for tensor, _ in work], sliced(work))
        set_sizes(result, sizes)
        shapes = self.new_shapes()
        edits = (
            Edit(c.tensor, c.axis, c.keep, self.tensors[c.tensor][0], shapes[c.tensor])
            for c in cuts
        )
        return Surgery(result, tuple(edits))

    def explain(self) -> str:
        """What will be cut, group by group, and what it saves, as text."""
        verbs = {"out": "written by", "in": "read by", "follow": "carried by"}
        lengths = {(cut.tensor, cut.axis): cut.keep.numel() for cut in self.cuts}
        lines = []
        for group in self.groups:
            left = self.keep[group.name].numel()
            each = "" if group.kind == "channel" else f", each a {group.kind}"
            lines.append(f"{group.name}: {group.channels} -> {left} channels{each}")
            for piece in group.slices:
                length = self.shapes[piece.tensor][piece.axis]
                change = f"{length} -> {lengths[piece.tensor, piece.axis]}"
                lines.append(f"  {verbs[piece.role]} {piece.tensor} axis {piece.axis}: {change}")
            lines.extend(f"  renormalised by {where}" for where in group.renormalised)
        before = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        after = sum(torch.Size(shape).numel() for shape in self.new_shapes().values())
        share = 100 * (1 - after / before) if before else 0.0
        lines.append(f"entries in parameters and buffers: {before} -> {after} (-{share:.1f} %)")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON text, self-contained: groups, index maps, sizes, example input shapes.

        Raises TypeError if the example inputs hold other than tensors, numbers, strings, None.
        """
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "groups": encode_groups(self.groups, self.keep),
                "tensors": encode_tensors(self.tensors),
                "inputs": encode_tree(self.inputs),
            }
        )

    @classmethod
    def from_json(cls, text: str, *, forward_fn: Callable[..., Any] | None = None) -> PruningPlan:
        """Inverse of :meth:`to_json`. Raises ValueError for text that is no valid plan.

        ``forward_fn``: that of :func:`infoslice.trace`, if there was one; text cannot hold it.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT or data["version"] != _VERSION:
                raise ValueError(f"{data['format']!r} version {data['version']!r}")
            groups = decode_groups(data["groups"])
            keep = {
                group.name: kept_channels(entry["keep"], "keep", group)
                for group, entry in zip(groups, data["groups"], strict=True)
            }
            tensors = decode_tensors(data["tensors"])
            made = cls(keep, groups, tensors, decode_tree(data["inputs"]), forward_fn=forward_fn)
            _ = made.cuts  # index maps that do not fit the shapes fail here
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"PruningPlan.from_json: argument text: expected {_FORMAT} version {_VERSION}, got "
                f"{type(error).__name__}: {error}"
            ) from error
        return made


def plan(
    graph: ChannelGraph,
    *,
    keep: Mapping[str, Any] | None = None,
    remove: Mapping[str, Any] | None = None,
) -> PruningPlan:
    """Decide what stays: group name -> channels to keep, or to remove; other groups stay whole.

    Args:
        graph: from :func:`infoslice.trace`.
        keep: sorted, unique channel numbers (sequence, NumPy array or tensor of integers).
        remove: unique channel numbers.

    Raises:
        ValueError: an unknown group, one that cannot be pruned, one given in both mappings;
            channels out of range, unsorted, repeated; nothing left.
        TypeError: channels that are not integers; arguments of other types than these.
    """
    if not isinstance(graph, ChannelGraph):
        raise TypeError(
            f"plan: argument graph: expected what infoslice.trace returns, got "
            f"{type(graph).__name__}"
        )
    known = {group.name: group for group in graph.groups}
    chosen: dict[str, Tensor] = {}
    for argument, mapping in (("keep", keep or {}), ("remove", remove or {})):
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"plan: argument {argument}: expected a mapping from group names to channels, got "
                f"{type(mapping).__name__}"
            )
        for name, channels in mapping.items():
            group = known.get(name)
            if group is None:
                raise ValueError(f"plan: argument {argument}: {unknown_group(graph, name)}")
            if not group.prunable:
                raise ValueError(
                    f"plan: argument {argument}: expected prunable groups, got {name!r} that is "
                    f"left whole: {group.reason}"
                )
            if name in chosen:
                raise ValueError(
                    f"plan: arguments keep and remove: expected each group once, got {name!r} in "
                    f"both"
                )
            chosen[name] = kept_channels(channels, argument, group)
    cut = {g.name: chosen[g.name] for g in graph.groups if g.name in chosen}
    cut = {name: left for name, left in cut.items() if left.numel() < known[name].channels}
    groups = tuple(group for group in graph.groups if group.name in cut)
    return PruningPlan(cut, groups, graph.tensors, graph.inputs, graph, graph.forward_fn)


def _same_names(present: Iterable[str], expected: Iterable[str]) -> None:
    missing, extra = sorted(set(expected) - set(present)), sorted(set(present) - set(expected))
    if missing or extra:
        raise ValueError(
            f"PruningPlan.validate: argument model: expected the parameters and buffers planned "
            f"for, got a model without {missing[:5]} and with {extra[:5]}"
        )


def _optimizers(given: object, inplace: bool) -> tuple[Optimizer, ...]:
    if given is None:
        return ()
    if not inplace:
        raise ValueError(
            "PruningPlan.apply: argument optimizer: expected inplace=True with it, got "
            "inplace=False: an optimizer goes on with the model that it trains, not with a copy"
        )
    return tuple(given) if isinstance(given, (tuple, list)) else (cast(Optimizer, given),)


def _refuse_hooks(cut: Iterable[tuple[str, Tensor]]) -> None:
    """Such a hook is handed the parameter itself, and mostly keeps something by its identity."""
    for name, tensor in cut:
        if getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"PruningPlan.apply: argument model: expected no post-accumulate-grad hooks on "
                f"parameters to cut in place, got one on {name}; remove it, and register it on the "
                f"new parameter"
            )


def _replace(model: nn.Module, optimizers: Sequence[Optimizer], batch: Work) -> None:
    """Cut these tensors of a model; what they held is free when the caller lets go of ``batch``."""
    old, new = [tensor for tensor, _ in batch], sliced(batch)
    replace_tensors(model, old, new)
    replace_parameters(optimizers, old, new)
