"""Arguments of a model's forward, and running it as it will be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Inputs", "evaluating"]


class Inputs(NamedTuple):
    """Arguments of a model's forward; the first dimension of every tensor counts samples."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Inputs:
        """From a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Tensor):
            return cls((inputs,), {})
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        if isinstance(inputs, (tuple, list)):
            return cls(tuple(inputs), {})
        raise TypeError(
            f"Inputs: argument inputs: expected a tensor, a tuple or list of arguments or a dict "
            f"of keyword arguments, got {type(inputs).__name__}"
        )

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def samples(self) -> int:
        """The common first dimension of the tensors. Raises ValueError if there is none."""
        sizes = {tuple(t.shape[:1]) for t in self.tensors()}
        if len(sizes) != 1 or sizes == {()}:
            raise ValueError(
                f"Inputs: argument inputs: expected tensors with one common number of samples in "
                f"front, got shapes {[tuple(t.shape) for t in self.tensors()]}"
            )
        return int(self.tensors()[0].shape[0])

    def map(self, function: Any) -> Inputs:
        """The same arguments with ``function`` applied to every tensor."""
        return Inputs(*pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs))))

    def batches(self, size: int) -> Iterator[Inputs]:
        """Consecutive batches of at most ``size`` samples."""
        for start in range(0, self.samples(), size):
            yield self.map(lambda t, start=start: t[start : start + size])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode; the train/eval flag of every module is put back at the end."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, flag in flags:
            module.training = flag
