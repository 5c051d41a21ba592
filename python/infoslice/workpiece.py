"""A network in the middle of being pruned: scored and silenced in place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from infoslice.criteria import Criterion
from infoslice.graph import ChannelGroup
from infoslice.group_statistics import GroupStatistics, LayerStatistics, NotMeasuredError
from infoslice.group_weights import filters, silence_
from infoslice.measured_network import MeasuredNetwork
from infoslice.report import LayerReport
from infoslice.surgery import PruningPlan

__all__ = ["Workpiece"]


class Workpiece:
    """What was decided about a network that is being pruned.

    ``network.pruned`` keeps its full size until the end: channels that were decided against are
    silenced by zeroing the weights that read them, which gives the outputs of the smaller network.
    """

    def __init__(self, network: MeasuredNetwork) -> None:
        self.network = network
        self.keep: dict[str, Tensor] = {}
        self.seen: set[str] = set()
        self.left_whole: dict[str, str] = {}
        self.decided: list[ChannelGroup] = []
        self._nats: dict[str, list[float]] = {}

    def score(
        self, group: ChannelGroup, statistics: GroupStatistics, criterion: Criterion
    ) -> Tensor | None:
        """Scores, checked; None and a reason if the criterion reads what cannot be measured."""
        self.seen.add(group.name)
        try:
            with self.network.on_device():
                scores = criterion(statistics, filters(group, self.network.pruned))
        except NotMeasuredError as error:
            self.left_whole[group.name] = str(error)
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
        self.decided.append(group)
        if statistics.measured:  # now, so that the statistics need not be kept
            with self.network.on_device():
                told = [(layer, _information(layer, keep)) for layer in statistics.consumers]
            for layer, nats in told:
                self._nats.setdefault(layer.name, []).extend(nats)
        if len(keep) == group.channels:
            return
        self.keep[group.name] = keep
        removed = torch.ones(group.channels, dtype=torch.bool)
        removed[keep] = False
        tensors = {
            **dict(self.network.pruned.named_parameters()),
            **dict(self.network.pruned.named_buffers()),
        }
        with torch.no_grad():
            silence_(tensors, group, removed.nonzero().flatten())

    def layer_reports(self, cut: PruningPlan) -> list[LayerReport]:
        """One line for each layer whose shape changed."""
        shapes, new = cut.shapes, cut.new_shapes()
        reports = []
        for name in self.network.graph.layers:
            weight = f"{name}.weight"
            if weight not in shapes or len(shapes[weight]) < 2 or shapes[weight] == new[weight]:
                continue
            out_axis = int(isinstance(self.network.pruned.get_submodule(name), _ConvTransposeNd))
            found = self._nats.get(name, [])
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


def _information(layer: LayerStatistics, keep: Tensor) -> tuple[float, float]:
    """Nats between a layer's input and its noisy output: all variables, and those kept."""
    joint = layer.joint(1.0, 1e-4)
    every = torch.arange(joint.inputs)
    gone = torch.ones(len(layer.variables), dtype=torch.bool)
    gone[keep] = False
    left = torch.ones(joint.inputs, dtype=torch.bool)
    left[layer.variables[gone].flatten()] = False
    return joint.information(every), joint.information(every[left])
