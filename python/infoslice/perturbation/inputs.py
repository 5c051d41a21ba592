"""Arguments of a model's forward, and running it as it will be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Inputs", "evaluating"]


class Inputs(NamedTuple):
    """Arguments of a model's forward; the first dimension of every tensor counts samples.

    ``weights``: of the samples in what is measured on them, or of their positions, >= 0, ``[N]`` or
    ``[N, T]``: such as a padding mask. No argument of the forward.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weights: Tensor | None = None

    @classmethod
    def of(cls, inputs: Any, weights: Tensor | None = None) -> Inputs:
        """From a tensor, a tuple or list of arguments, or a dict of keyword arguments.

        Raises TypeError for anything else, ValueError for weights of another number of samples.
        """
        if isinstance(inputs, Inputs):
            made = inputs if weights is None else inputs._replace(weights=weights)
        elif isinstance(inputs, Tensor):
            made = cls((inputs,), {}, weights)
        elif isinstance(inputs, Mapping):
            made = cls((), dict(inputs), weights)
        elif isinstance(inputs, (tuple, list)):
            made = cls(tuple(inputs), {}, weights)
        else:
            raise TypeError(
                f"Inputs: argument inputs: expected a tensor, a tuple or list of arguments or a "
                f"dict of keyword arguments, got {type(inputs).__name__}"
            )
        if weights is not None and (not weights.dim() or len(weights) != made.samples()):
            raise ValueError(
                f"Inputs: argument weights: expected [{made.samples()}, ...], one for each sample "
                f"or position, got {tuple(weights.shape)}"
            )
        return made

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
        """The same with ``function`` applied to every tensor among the arguments."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.weights)

    def batches(self, size: int) -> Iterator[Inputs]:
        """Consecutive batches of at most ``size`` samples."""
        for start in range(0, self.samples(), size):
            batch = self.map(lambda t, start=start: t[start : start + size])
            own = None if self.weights is None else self.weights[start : start + size]
            yield batch._replace(weights=own)


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
