"""Compensation layer by layer, in order of execution."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from infoslice.compensation.batch_norm import restate_
from infoslice.compensation.merge import merge_
from infoslice.compensation.one_shot import fold_mean_, linear_moments
from infoslice.compensation.reconstruction import reconstruct_
from infoslice.compensation.refit import joint_moments, refit_, refittable
from infoslice.criteria import merges
from infoslice.graph import ChannelGroup
from infoslice.graph.following import Sum
from infoslice.group_statistics import GroupStatistics, NotMeasuredError
from infoslice.group_weights import silenced
from infoslice.statistics import (
    Moments,
    Structure,
    supported,
    variables,
    variables_per_channel,
    weight_matrix,
)
from infoslice.workpiece import Workpiece

__all__ = ["Compensation", "Compensator"]

Compensation = Literal["none", "bias", "least_squares", "sequential", "batch_norm", "merge"]


class Compensator:
    """Makes the layers of a workpiece replace what was cut away.

    ``how``: as for :func:`infoslice.prune`. ``not_refitted``: layer -> why its weights are the old
    ones, filled by the visits.
    """

    def __init__(self, work: Workpiece, how: frozenset[Compensation], ridge: float) -> None:
        self.work, self.network, self.how, self.ridge = work, work.network, how, ridge
        self.not_refitted: dict[str, str] = {}
        self._of_original: Mapping[str, Moments] = {}
        self._waiting: dict[str, tuple[Sum, Sequence[Tensor], Sequence[Tensor]]] = {}
        nodes = [n for n in self.network.graph.signature.nodes if n.op == "call_function"]
        self._norm_calls = Counter(n.module for n in nodes if "batch_norm" in str(n.target))

    def decide(self, group: ChannelGroup, keep: Tensor, statistics: GroupStatistics) -> None:
        """Fix what stays of a group; what goes is merged into it first, if that is asked for."""
        if "least_squares" in self.how and not self.work.keep and statistics.measured:
            # Nothing is cut yet: what was measured for the scores is what the original shows.
            shown = {n: m for n, m in statistics.moments.items() if not m.transformed}
            self._of_original = shown
        if "merge" in self.how and any(piece.role == "in" for piece in group.slices):
            merge_(self.network.pruned, group, merges(statistics, keep))
        self.work.decide(group, keep, statistics)

    def alone(
        self, group: ChannelGroup, removed: Tensor, statistics: GroupStatistics
    ) -> dict[str, Tensor]:
        """The tensors of the original that differ if channels of this group alone are removed.

        If layers are to be refitted, those that read the group are, in one shot from its
        statistics in the original; else they are silenced.
        """
        model = self.network.original
        tensors = silenced(model, group, removed)
        if not self.how & {"least_squares", "sequential"} or group.renormalised:
            return tensors
        with contextlib.suppress(NotMeasuredError), self.network.on_device():
            for reader in statistics.consumers:
                here = self.network.pruned.get_submodule(reader.name)
                if self._not_refittable(reader.name, cast("nn.Linear | _ConvNd", here)):
                    continue
                layer = copy.deepcopy(cast("nn.Linear | _ConvNd", model.get_submodule(reader.name)))
                norm = copy.deepcopy(self._norm_behind(reader.name))
                left = torch.ones(reader.weight.shape[1], dtype=torch.bool)
                left[reader.variables[removed].flatten()] = False
                moments, kept = linear_moments(layer, reader.moments), left.nonzero().flatten()
                refit_(layer, moments, kept, norm=norm, ridge=self.ridge)
                for name, tensor in layer.named_parameters():
                    tensors[f"{reader.name}.{name}"] = tensor.detach()
                if norm is not None and layer.bias is None:
                    behind = self.network.steps[reader.name][0].module
                    tensors[f"{behind}.running_mean"] = cast(Tensor, norm.running_mean)
        return tensors

    def approach(self, name: str) -> None:
        """Come to a layer: settle the sums that are executed before it."""
        for waiting, (where, x, y) in list(self._waiting.items()):
            if name not in where.before:
                del self._waiting[waiting]
                self._settle(where, x, y)

    def finish(self) -> None:
        """After the last layer."""
        self.approach("")

    def visit(self, name: str) -> None:
        """Compensate at one layer, if anything before it was cut and nothing speaks against it."""
        if not self.work.keep:
            return
        layer = self.network.pruned.get_submodule(name)
        if isinstance(layer, _BatchNorm):
            self._visit_norm(name, layer)
            return
        behind = any(name in g.consumers and g.name in self.work.keep for g in self.work.decided)
        if "sequential" not in self.how and not (behind and self.how & {"bias", "least_squares"}):
            return
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            if behind:
                self.not_refitted[name] = (
                    f"{type(layer).__name__}: linear layers and convolutions can be refitted"
                )
            return
        why = self._not_refittable(name, layer)
        if why:
            self.not_refitted[name] = why
            return
        if "sequential" in self.how and name in self.network.sums:
            found = self.network.in_pruned.at(name), self.network.in_original.at(name)
            self._waiting[name] = (self.network.sums[name], *found)
            return
        if "sequential" in self.how and name in self.network.steps:
            then = self.network.steps[name][int(self._norm_behind(name) is not None) :]
            self._reconstruct(
                name,
                self.network.in_pruned.at(name),
                self.network.in_original.at(name),
                rectified=bool(then) and then[0].is_relu,
            )
            return
        norm, kept = self._norm_behind(name), self._kept_variables(name, layer)
        if "sequential" in self.how:  # called several times: all calls count
            network = self.network
            joint = joint_moments(
                network.pruned, network.original, name, network.inputs(),
                batch_size=network.batch_size,
            )  # fmt: skip
            refit_(layer, joint, kept, norm=norm, ridge=self.ridge)
            return
        own = self._in_original(name)
        before = self.network.original.get_submodule(name)
        if "least_squares" in self.how:
            refit_(layer, linear_moments(before, own), kept, norm=norm, ridge=self.ridge)
            return
        removed = torch.ones(len(own.mean_x), dtype=torch.bool)
        removed[kept] = False
        gone = removed.nonzero().flatten()
        if not fold_mean_(layer, weight_matrix(before), own.mean_x, gone, norm=norm):
            self.not_refitted[name] = "it has no bias, nor has a batch norm alone behind it"

    def _visit_norm(self, name: str, norm: _BatchNorm) -> None:
        if "batch_norm" not in self.how or norm.running_mean is None:
            return
        if self._norm_calls[name] == 1:
            found = self.network.in_pruned.at(name)
            restate_(norm, found, self.network.in_pruned.weights(found))
        else:
            self.not_refitted[name] = "it is called several times, with statistics of all of them"

    def _settle(self, where: Sum, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Refit a layer so that the *sum* is what it is in the original.

        The target is the original's output plus what the other operand, of the pruned network, has
        come to lack. The forwards of the pruned network went through the layer with its old
        weights, and are given its new output at the sum.
        """
        network, name = self.network, where.layer
        module = where.norm or name
        others = zip(
            network.in_original.at_sum(module), network.in_pruned.at_sum(module), strict=True
        )
        layer = self._reconstruct(name, inputs, outputs, list(others), rectified=where.rectified)
        with torch.no_grad():
            new = [cast(Tensor, layer(x)) for x in inputs]
            if where.norm:
                last = network.pruned.get_submodule(where.norm)
                new = [cast(Tensor, last(y)) for y in new]
        network.in_pruned.replace(new)

    def _reconstruct(
        self,
        name: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        others: Sequence[tuple[Tensor, Tensor]] | None = None,
        *,
        rectified: bool,
    ) -> nn.Module:
        layer = self.network.pruned.get_submodule(name)
        reconstruct_(
            layer,
            inputs,
            outputs,
            self._kept_variables(name, layer),
            norm=self._norm_behind(name),
            others=others,
            rectified=rectified,
            weights=self.network.in_pruned.weights(inputs),
            ridge=self.ridge,
        )
        return layer

    def _norm_behind(self, name: str) -> _BatchNorm | None:
        """The batch norm that alone reads the layer's output, if it holds running statistics."""
        first = self.network.steps.get(name, ())[:1]
        found = self.network.pruned.get_submodule(first[0].module) if first else None
        usable = isinstance(found, _BatchNorm) and found.running_mean is not None
        return cast(_BatchNorm, found) if usable and first[0].is_norm else None

    def _in_original(self, name: str) -> Moments:
        """Of what a layer reads in the original: of it and of those to come that fit in memory."""
        if name not in self._of_original:
            network = self.network
            whole = {group.name for group in self.work.decided} - set(self.work.keep)
            groups = [group for group in network.graph.prunable if group.name not in whole]
            reading = {name for group in groups for name in group.consumers}
            layers = [
                n for n in network.graph.layers if n in reading and not network.not_measurable(n)
            ]
            self._of_original = {}  # let go of what is behind first
            structure: Structure = "full" if "least_squares" in self.how else "diagonal"
            self._of_original = network.of_original(layers[layers.index(name) :], structure)
        return self._of_original[name]

    def _not_refittable(self, name: str, layer: nn.Linear | _ConvNd) -> str:
        if not supported(layer) and getattr(layer, "groups", 1) == 1:
            return f"{type(layer).__name__}: it has a forward of its own"
        if not refittable(layer):
            groups = cast(_ConvNd, layer).groups
            kind = f"{groups} groups" if groups > 1 else "transposed"
            return f"{type(layer).__name__} ({kind}): its outputs are no regression on its inputs"
        if set(layer._parameters) != {"weight", "bias"}:
            return "its parameters are not plain"
        if name not in self.network.called:
            return "its weight is used by other code than its own"
        if self.network.wide(name):
            return f"it reads more than max_variables = {self.network.max_variables} variables"
        for module_name, module in self.network.pruned.named_modules():
            if module is not layer and any(p is layer.weight for p in module._parameters.values()):
                return f"its weight is shared with '{module_name}'"
        for group in self.work.decided:
            if name in group.consumers and group.renormalised and group.name in self.work.keep:
                return f"{group.renormalised[0]} normalises over the channels that are left"
        return ""

    def _kept_variables(self, name: str, layer: nn.Module) -> Tensor:
        """Columns of the layer's matrix that are still read."""
        taps = variables_per_channel(layer)
        kept = torch.ones(variables(layer), dtype=torch.bool)
        for group in self.work.decided:
            if group.name not in self.work.keep or name not in group.consumers:
                continue
            removed = torch.ones(group.channels, dtype=torch.bool)
            removed[self.work.keep[group.name]] = False
            for piece in group.slices:
                if piece.role == "in" and piece.module == name:
                    places = piece.index_map.indices(removed.nonzero().flatten())
                    kept.view(-1, taps)[places] = False
        return kept.nonzero().flatten()
