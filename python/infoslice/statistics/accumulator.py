"""Moments of many layers at once, streamed over the forwards of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn

from infoslice.graph import ChannelGroup
from infoslice.perturbation import Inputs
from infoslice.statistics.copula import Copula
from infoslice.statistics.hooks import LayerHooks, Stream
from infoslice.statistics.measuring import measure
from infoslice.statistics.moments import Moments, Structure
from infoslice.statistics.state import from_tensors, to_tensors

__all__ = ["Accumulator", "Transform", "collect"]

Transform = Literal["copula"]


class Accumulator(LayerHooks):
    """Measures layers of a model in whatever forwards are run while it is open.

    ``with Accumulator(model, layers) as found: ...`` hooks the layers; every call of one of them is
    merged into ``found.moments`` at once, so that memory is that of the moments and of one batch,
    however many batches there are. The model is run as it is: in eval mode or not, by whom ever.
    It may be opened again, and goes on.

    Attributes:
        moments: by layer; a layer that was never called (or with weights of 0 only) is not there.
        layers: all that are hooked.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str | ChannelGroup],
        *,
        structure: Structure = "full",
        block_sizes: Mapping[str, int] | None = None,
        sampling_errors: bool = False,
        outputs: Mapping[str, Stream] | None = None,
        transforms: Mapping[str, Stream] | None = None,
        fresh_noise: Stream | None = None,
    ) -> None:
        """Nothing is hooked yet.

        Args:
            model: whose layers they are. Never changed.
            layers: module paths, each :func:`infoslice.statistics.supported`; or channel groups of
                a :class:`infoslice.ChannelGraph`, of which all layers are meant that read or write
                them and can be measured.
            structure: ``"full"`` covariances, 8 d^2 bytes for a layer of d variables; ``"block"``:
                those of variables that stand next to each other, 8 d b bytes; ``"diagonal"``:
                variances alone, 8 d bytes.
            block_sizes: variables of a block, b, by layer (the width of a head); by default those
                of one channel (its taps).
            sampling_errors: keep what :attr:`Moments.effective_count` and Ledoit-Wolf shrinkage
                need. O(n d) more work, in float64.
            outputs: layers whose output is measured too, each with the function applied to it first
                (the activation; ``torch.nn.Identity()`` for the plain output).
            transforms: layers whose padded input is passed through a function first, which keeps
                its shape (see :class:`infoslice.statistics.Copula`).
            fresh_noise: replaces the input of each layer, to perturb every layer by itself.

        Raises:
            TypeError: a path to a layer that cannot be measured.
            AttributeError: a path that leads nowhere.
        """
        super().__init__(model, layers, fresh_noise=fresh_noise)
        self.structure, self.sampling_errors = structure, sampling_errors
        self.block_sizes, self.outputs = dict(block_sizes or {}), dict(outputs or {})
        self.transforms = dict(transforms or {})
        self.moments: dict[str, Moments] = {}

    def see(
        self, name: str, layer: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None
    ) -> None:
        """Merge one call."""
        of = self.outputs.get(name)
        try:
            found = measure(
                layer,
                x,
                None if of is None else of(y),
                weights=weights,
                structure=self.structure,
                block_size=self.block_sizes.get(name),
                sampling_errors=self.sampling_errors,
                transform=self.transforms.get(name),
            )
        except ValueError as error:
            raise ValueError(f"{error} (layer '{name}')") from error
        if found.count:
            known = self.moments.get(name)
            self.moments[name] = found if known is None else known.merge(found)

    def holding(self, moments: Mapping[str, Moments]) -> Accumulator:
        """A copy, not open, that holds other moments."""
        made = copy.copy(self)
        made._hooks, made._weights, made.moments = [], None, dict(moments)
        return made

    def merge(self, other: Accumulator) -> Accumulator:
        """A new one that holds the samples of both, exactly; ``other`` may know other layers."""
        moments = dict(self.moments)
        for name, found in other.moments.items():
            moments[name] = moments[name].merge(found) if name in moments else found
        merged = self.holding(moments)
        merged.layers = tuple(dict.fromkeys((*self.layers, *other.layers)))
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """All that was measured, as tensors by ``layer.field``; float64, numbers as 0-d tensors.

        For ``torch.save`` and safetensors. Loaded and continued it gives the same numbers, bit for
        bit, as without the interruption.
        """
        return {
            f"{name}.{field}": tensor
            for name, found in self.moments.items()
            for field, tensor in to_tensors(found).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all that was measured; each layer's moments move to where its weight is.

        Raises ValueError for a layer that is not among ``layers``, or moments of another structure.
        """
        by_layer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            name, _, field = key.rpartition(".")
            by_layer.setdefault(name, {})[field] = tensor
        unknown = sorted(set(by_layer) - set(self.layers))
        if unknown:
            raise ValueError(
                f"load_state_dict: argument state: expected layers of this accumulator, got "
                f"{unknown}"
            )
        found = {}
        for name, tensors in by_layer.items():
            device = next(self.model.get_submodule(name).parameters()).device
            found[name] = from_tensors({key: t.to(device) for key, t in tensors.items()})
        for name, moments in found.items():
            if moments.structure != self.structure:
                raise ValueError(
                    f"load_state_dict: argument state: expected {self.structure} covariances, got "
                    f"a {moments.structure} one for layer '{name}'"
                )
        self.moments = found


def collect(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str | ChannelGroup],
    *,
    batch_size: int = 64,
    structure: Structure = "full",
    sampling_errors: bool = False,
    outputs: Mapping[str, Stream] | None = None,
    transform: Transform | None = None,
    fresh_noise: Stream | None = None,
) -> dict[str, Moments]:
    """Run ``model`` in eval mode on all ``inputs`` and measure ``layers``.

    An :class:`Accumulator` and the loop over the batches; see there for what is not listed here.

    Args:
        model: nothing of it changes.
        inputs: what is put in, with the weights of it (see :meth:`Accumulator.weighted`).
        layers: layers called several times are pooled.
        batch_size: samples per forward; bounds the memory.
        structure: of the covariances.
        sampling_errors: keep them too.
        outputs: layers whose output is measured too, each with a function applied to it first.
        transform: ``"copula"``: every channel is mapped to normal scores first, by a pass of its
            own over the inputs (see :class:`infoslice.statistics.Copula`). Outputs are then always
            measured: the linear map of transformed inputs is not the transformed output.
        fresh_noise: replaces the input of each layer.

    Raises:
        ValueError: a layer was never called, or an activation is NaN or infinite.
        TypeError: a layer that cannot be measured; ``"copula"`` and a transposed convolution.
    """
    if transform not in (None, "copula"):
        raise ValueError(
            f"collect: argument transform: expected None or 'copula', got {transform!r}"
        )
    layers, transforms = list(layers), None
    if transform:
        copula = Copula(model, layers, outputs=outputs, fresh_noise=fresh_noise)
        copula.run(inputs, batch_size)
        transforms, outputs = copula.inputs, copula.outputs
        if structure != "full":
            outputs = None
    accumulator = Accumulator(
        model,
        layers,
        structure=structure,
        sampling_errors=sampling_errors,
        outputs=outputs,
        transforms=transforms,
        fresh_noise=fresh_noise,
    )
    accumulator.run(inputs, batch_size)
    missing = [name for name in accumulator.layers if name not in accumulator.moments]
    if missing:
        raise ValueError(
            f"collect: argument layers: expected layers that are called, got {missing}"
        )
    return accumulator.moments
