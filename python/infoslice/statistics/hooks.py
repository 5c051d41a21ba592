"""Hooks on the layers of a model whose forwards somebody else runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from infoslice.graph import ChannelGroup
from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics.layers import position_weights, supported

__all__ = ["LayerHooks", "Stream"]

Stream = Callable[[Tensor], Tensor]


class LayerHooks(ABC):
    """While it is open (``with``), every call of one of its layers is passed to :meth:`see`."""

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str | ChannelGroup],
        *,
        fresh_noise: Stream | None = None,
    ) -> None:
        self.model, self.layers = model, tuple(dict.fromkeys(self._names(model, layers)))
        self.fresh_noise = fresh_noise
        self._hooks: list[Any] = []
        self._weights: Tensor | None = None

    def __enter__(self) -> Any:
        for name in self.layers:
            layer = self.model.get_submodule(name)
            hook = layer.register_forward_hook(self._hook_of(name), with_kwargs=True)
            self._hooks.append(hook)
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @abstractmethod
    def see(
        self, name: str, layer: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None
    ) -> None:
        """One call of a layer: what it reads and writes, and the weights now in force."""

    @contextmanager
    def weighted(self, weights: Tensor | None) -> Iterator[None]:
        """Weights of the samples of the forwards run inside: padding masks, or any numbers >= 0.

        ``[N]``, or with more of the dimensions in which layers are applied: ``[N, T]`` for layers
        that read tokens ``[N, T, C]``; see :func:`infoslice.statistics.measure`, which refuses a
        layer that they do not fit. What was pooled over positions has the largest of their weights.
        """
        before, self._weights = self._weights, weights
        try:
            yield
        finally:
            self._weights = before

    def run(self, inputs: Inputs, batch_size: int) -> None:
        """The model in eval mode on all inputs, batch by batch. Nothing of the model changes."""
        with evaluating(self.model), torch.no_grad(), self:
            for batch in inputs.batches(batch_size):
                with self.weighted(batch.weights):
                    self.model(*batch.args, **batch.kwargs)

    def _hook_of(self, name: str) -> Any:
        @torch.no_grad()
        def hook(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
        ) -> None:
            x = cast(Tensor, args[0] if args else kwargs["input"])
            if self.fresh_noise is not None:
                x = self.fresh_noise(x)
                y = cast(Tensor, layer.forward(x))
            self.see(name, layer, x, y, position_weights(self._weights, x))

        return hook

    def _names(self, model: nn.Module, layers: Iterable[str | ChannelGroup]) -> Iterator[str]:
        for entry in layers:
            if isinstance(entry, ChannelGroup):
                names = (*entry.producers, *entry.consumers)
                yield from (name for name in names if supported(model.get_submodule(name)))
            elif supported(model.get_submodule(entry)):
                yield entry
            else:
                raise TypeError(
                    f"{type(self).__name__}: argument layers: expected linear layers and "
                    f"convolutions with groups=1, got '{entry}', a "
                    f"{type(model.get_submodule(entry)).__name__}"
                )
