"""A network, while it is cut in place, and its original: what their layers are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from infoslice.graph import ChannelGraph, ChannelGroup
from infoslice.graph.following import Step, following, sums
from infoslice.group_statistics import GroupStatistics, NotMeasuredError
from infoslice.lockstep import Lockstep
from infoslice.perturbation import Inputs, Kind, noise
from infoslice.perturbation.norms import noise_at_norms
from infoslice.statistics import (
    Loss,
    Moments,
    Samples,
    Stream,
    Structure,
    Transform,
    collect,
    collect_samples,
    measure,
    output_curvature,
    supported,
    variables,
)

__all__ = ["Injection", "MeasuredNetwork", "Target"]

Injection = Literal["input", "norm", "layer"]
_SAMPLES = 2500  # of a layer, for criteria that look at samples: ten classes of 250
_BYTES = 4 << 30  # of covariances that are held at a time
Target = Literal["pre", "post"]


class MeasuredNetwork:
    """What the layers of a network and of its original read and write. A context manager.

    ``pruned`` may change between one call and the next; what is measured is what it is then. The
    layers are to be visited in the order of execution: the forwards of all batches stand at the
    layer that is visited, in the pruned network and in the original.
    """

    def __init__(
        self,
        *,
        graph: ChannelGraph,
        original: nn.Module,
        pruned: nn.Module,
        inputs: Callable[[], Inputs],
        injection: Injection,
        kind: Kind,
        seed: int,
        target: Target,
        batch_size: int,
        max_variables: int,
        transform: Transform | None = None,
        sampling_errors: bool = False,
    ) -> None:
        self.graph, self.original, self.pruned = graph, original, pruned
        self.inputs, self.target = inputs, target
        self.steps, self.sums = following(graph), sums(graph)
        self.injection, self.kind, self.seed = injection, kind, seed
        self.transform, self.sampling_errors = transform, sampling_errors
        self.batch_size, self.max_variables = batch_size, max_variables
        calls = [node for node in graph.signature.nodes if node.op == "call_function"]
        self.called = {node.module for node in calls}
        self._curvatures: dict[str, Mapping[str, Tensor]] = {}
        self._norms = {n: s[0].module for n, s in self.steps.items() if s and s[0].is_norm}
        self._open = contextlib.ExitStack()
        self._default = torch.get_default_device()

    def __enter__(self) -> MeasuredNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        """What is made inside is made where the network is; but for what is measured meanwhile."""
        return self._making_on(next((p.device for p in self.pruned.parameters()), self._default))

    def _as_called(self) -> contextlib.AbstractContextManager[Any]:
        """Inputs and forwards make what they make as they do outside of :meth:`on_device`."""
        return self._making_on(self._default)

    def _making_on(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if torch.get_default_device() == device else device

    @cached_property
    def in_pruned(self) -> Lockstep:
        """The forwards of the pruned network, each standing before a layer."""
        return self._lockstep(self.pruned, after=False)

    @cached_property
    def in_original(self) -> Lockstep:
        """The forwards of the original, each standing behind a layer."""
        return self._lockstep(self.original, after=True)

    def _lockstep(self, model: nn.Module, *, after: bool) -> Lockstep:
        with self._as_called():
            batches = list(self.inputs().batches(self.batch_size))
        added = [where.norm or layer for layer, where in self.sums.items()]
        walk = Lockstep(model, batches, self.graph.layers, after=after, added=added)
        return self._open.enter_context(walk)

    def statistics(self, groups: Sequence[ChannelGroup]) -> dict[str, GroupStatistics]:
        """Of groups, on what the network pruned so far passes on; measured when first read."""
        reading = {name for group in groups for name in group.consumers}
        names = reading.union(*(group.producers for group in groups))
        layers = [name for name in self.graph.layers if name in names]
        reasons = {name: reason for name in layers if (reason := self.not_readable(name))}
        # Few criteria look at the layers that write a group: these are measured apart.
        parts = [name for name in layers if name in reading], layers
        known = _Known(self, parts, "full")
        diagonals = _Known(self, parts, "diagonal", {} if self.transform else known)
        return {
            g.name: GroupStatistics(
                g,
                self.pruned,
                lambda: known,
                self._norms,
                diagonals=lambda: diagonals,
                not_measurable=reasons,
                samples=self._samples,
                curvature=self.curvature,
            )
            for g in groups
        }

    def passes(self, groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
        """The groups in portions whose covariances fit into memory (``_BYTES``) together."""
        portions: list[list[ChannelGroup]] = []
        seen: set[str] = set()
        taken = 0
        for group in groups:
            new = [n for n in group.consumers if n not in seen and not self.not_measurable(n)]
            need = sum(self._bytes(name) for name in new)
            if not portions or taken + need > _BYTES:
                portions.append([])
                seen, taken = set(), 0
            portions[-1].append(group)
            seen.update(new)
            taken += need
        return portions

    def _bytes(self, name: str) -> int:
        """Of the covariance of what a layer reads."""
        return 8 * variables(self.pruned.get_submodule(name)) ** 2

    def statistics_at(self, group: ChannelGroup, name: str) -> GroupStatistics:
        """Of a group, when layer ``name``, the first that reads it, is visited.

        If no other layer reads the group, what this one is about to read tells all: the network is
        not run again unless a criterion asks for more.
        """
        again = self.statistics([group])[group.name]
        alone = group.consumers == (name,) and name in self.steps and self.injection == "input"
        if not alone or self.not_measurable(name) or self.transform:
            return again

        def here(structure: Structure) -> Moments:
            layer = self.pruned.get_submodule(name)
            total: Moments | None = None
            found = self.in_pruned.at(name)
            for x, weights in zip(found, self.in_pruned.weights(found), strict=True):
                y = None
                if name in self._outputs([name], structure):
                    y = self._activate(self.steps[name], cast(Tensor, layer.forward(x)))
                errors = self.sampling_errors and structure == "full"
                of_batch = measure(
                    layer, x, y, weights=weights, structure=structure, sampling_errors=errors
                )
                total = of_batch if total is None else total.merge(of_batch)
            assert total is not None  # Inputs hold at least one batch
            return total

        @cache
        def moments() -> Mapping[str, Moments]:
            return _Here({name: here("full")}, lambda: again.moments)

        @cache
        def diagonals() -> Mapping[str, Moments]:
            if moments.cache_info().currsize:
                return moments()
            return _Here({name: here("diagonal")}, lambda: again.diagonals)

        return GroupStatistics(
            group, self.pruned, moments, self._norms, diagonals=diagonals, samples=self._samples,
            curvature=self.curvature,
        )  # fmt: skip

    def curvature(self, loss: Loss) -> Mapping[str, Tensor]:
        """How the loss of the original minds errors of all layers that read a group."""
        if loss not in self._curvatures:
            names = {name for group in self.graph.prunable for name in group.consumers}
            layers = [n for n in self.graph.layers if n in names and not self.not_measurable(n)]
            with self._as_called():
                self._curvatures[loss] = output_curvature(
                    self.original, self.inputs(), layers, loss=loss, seed=self.seed
                )
        return self._curvatures[loss]

    def _samples(self, name: str) -> Samples:
        """Of a layer of the network pruned so far, which is run once more for them."""
        if self.injection == "layer":
            raise NotMeasuredError("samples are those of whole forwards; use injection='input'")
        size = self.batch_size
        with self._as_called(), self._at_norms(self.pruned):
            inputs = self.inputs()
            found = collect_samples(self.pruned, inputs, [name], limit=_SAMPLES, batch_size=size)
        return found[name]

    def _at_norms(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        if self.injection == "norm":
            return noise_at_norms(model, self.seed)
        return contextlib.nullcontext()

    def _outputs(self, layers: list[str], structure: Structure) -> dict[str, Stream]:
        """What is measured of the outputs, by layer."""
        if self.target == "pre" or structure != "full":
            return {}
        return {
            name: partial(self._activate, self.steps.get(name, ()))
            for name in layers
            if not isinstance(self.pruned.get_submodule(name), _ConvTransposeNd)
        }

    def collect(self, layers: list[str], structure: Structure) -> dict[str, Moments]:
        """Of what layers read in the network pruned so far; of their outputs too if asked for."""
        return self._collect(
            self.pruned,
            layers,
            structure,
            sampling_errors=self.sampling_errors and structure == "full",
            outputs=self._outputs(layers, structure),
            transform=self.transform if structure == "full" else None,
        )

    def of_original(self, layers: Sequence[str], structure: Structure) -> dict[str, Moments]:
        """Of what the first of some layers read in the original, as many as fit into memory."""
        taken, fit = 0, 0
        for name in layers:
            taken += self._bytes(name) if structure == "full" else 0
            if fit and taken > _BYTES:
                break
            fit += 1
        return self._collect(self.original, layers[:fit], structure)

    def _collect(
        self, model: nn.Module, layers: Sequence[str], structure: Structure, **options: Any
    ) -> dict[str, Moments]:
        fresh = None
        if self.injection == "layer":
            generator = torch.Generator().manual_seed(self.seed)
            fresh = partial(_fresh, generator, self.kind)
        with self._as_called(), self._at_norms(model):
            return collect(
                model,
                self.inputs(),
                layers,
                batch_size=self.batch_size,
                structure=structure,
                fresh_noise=fresh,
                **options,
            )

    def _activate(self, steps: tuple[Step, ...], y: Tensor) -> Tensor:
        for step in steps:
            y = step.apply(self.pruned, y)
        return y

    def not_measurable(self, name: str) -> str:
        """Why the covariance of what the layer reads cannot be had; empty if it can."""
        reason = self.not_readable(name)
        if not reason and self.wide(name):
            return f"layer '{name}' reads more than max_variables = {self.max_variables} variables"
        return reason

    def not_readable(self, name: str) -> str:
        """Why not even means and variances can be had."""
        layer = self.pruned.get_submodule(name)
        if not supported(layer) or "weight" not in layer._parameters:
            return (
                f"'{name}' is a {type(layer).__name__}; torch's own linear layers and convolutions "
                f"with groups=1 can be measured"
            )
        if self.transform and isinstance(layer, _ConvTransposeNd):
            return f"'{name}' is transposed: its outputs are no samples of its transformed inputs"
        if name not in self.called:
            return f"the weight of '{name}' is used by other code than its own"
        return ""

    def wide(self, name: str) -> bool:
        """Whether a layer reads more variables than may be measured."""
        layer = self.pruned.get_submodule(name)
        return variables(layer) > self.max_variables


class _Known(dict[str, Moments]):
    """Moments by layer; a part of the layers is measured when the first of them is read."""

    def __init__(
        self,
        network: MeasuredNetwork,
        parts: Sequence[Sequence[str]],
        structure: Structure,
        more: Mapping[str, Moments] | None = None,
    ) -> None:
        """``more``: moments that tell all that these would, of the layers that are in it."""
        super().__init__()
        self.network, self.parts, self.structure = network, parts, structure
        self.more = more or {}

    def __missing__(self, name: str) -> Moments:
        if name in self.more:
            return self.more[name]
        full = self.structure == "full"
        why = self.network.not_measurable if full else self.network.not_readable
        if reason := why(name):
            raise NotMeasuredError(reason)
        part = next(part for part in self.parts if name in part)
        left = [n for n in part if n not in self and n not in self.more and not why(n)]
        self.update(self.network.collect(left, self.structure))
        return self[name]


class _Here(dict[str, Moments]):
    """Moments of the layer that is visited; of others as the network, run again, shows them."""

    def __init__(
        self, moments: Mapping[str, Moments], again: Callable[[], Mapping[str, Moments]]
    ) -> None:
        super().__init__(moments)
        self.again = again

    def __missing__(self, name: str) -> Moments:
        return self.again()[name]


def _fresh(generator: torch.Generator, kind: Kind, x: Tensor) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    return cast(Tensor, noise(x, max(2, len(x)), kind=kind, seed=seed).args[0])[: len(x)]
