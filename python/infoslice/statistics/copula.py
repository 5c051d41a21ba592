"""Normal scores: channels mapped to Gaussian ones, so that only their dependence is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoslice.graph import ChannelGroup
from infoslice.statistics.hooks import LayerHooks, Stream
from infoslice.statistics.layers import padded
from infoslice.statistics.quantiles import QuantileSketch

__all__ = ["Copula"]


class Copula(LayerHooks):
    """Learns, in forwards run while it is open, to map channels to normal scores.

    ``z = Phi^-1(rank(x) / (n + 1))``, the rank of a value among all that its channel took: the
    Gaussian information of such scores is invariant to monotone maps of every channel and, between
    two channels whose values do not tie, a lower bound on the mutual information (Ince et al.
    2017). A first pass over the inputs feeds this; a second measures what the maps make of them::

        with Copula(model, layers) as copula:
            ...  # run the model
        with Accumulator(model, layers, transforms=copula.inputs, outputs=copula.outputs) as found:
            ...  # run the model on the same inputs

    ``collect(..., transform="copula")`` does both. Each channel has one map, learnt from the padded
    input and used for all taps. Ranks are those of a :class:`QuantileSketch`: exact up to ``size``
    values of a channel, within about 1.5 / size of n beyond.

    **Ties and exact zeros**: all values of a tie get the mean of their ranks, and of zeros these
    are exact. The scores of a channel with ties are not Gaussian, and have a variance below one;
    those of a constant channel are 0. A channel that takes one value more often than ``max_ties``,
    but not always, is refused: its few other values are far out by rank alone.

    The scores are for informations. What is to be fitted (compensation), and whatever multiplies
    moments with weights, needs the values themselves.

    Args:
        model: whose layers they are. Never changed.
        layers: as for :class:`infoslice.statistics.Accumulator`.
        outputs: functions applied to the outputs of layers first; by default none is.
        size: of the sketches.
        max_ties: largest share of one value in a channel that varies, in (0, 1].
        fresh_noise: replaces the input of each layer.

    Raises:
        TypeError: a layer that cannot be measured, or a transposed convolution, whose outputs are
            no samples of its inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str | ChannelGroup],
        *,
        outputs: Mapping[str, Stream] | None = None,
        size: int = 1024,
        max_ties: float = 0.99,
        fresh_noise: Stream | None = None,
    ) -> None:
        super().__init__(model, layers, fresh_noise=fresh_noise)
        for name in self.layers:
            if isinstance(model.get_submodule(name), _ConvTransposeNd):
                raise TypeError(
                    f"Copula: argument layers: expected layers whose outputs are samples of their "
                    f"inputs, got '{name}', a transposed convolution"
                )
        self.size, self.max_ties = size, max_ties
        self._activations = dict(outputs or {})
        self._of_inputs: dict[str, QuantileSketch] = {}
        self._of_outputs: dict[str, QuantileSketch] = {}

    def see(
        self, name: str, layer: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None
    ) -> None:
        """Feed one call."""
        x, y = padded(layer, x.detach()), self._activations.get(name, _itself)(y)
        for sketches, tensor in ((self._of_inputs, x), (self._of_outputs, y)):
            values = _channels_first(layer, tensor)
            if weights is not None:
                values = values[:, _live(layer, tensor, weights)]
            if name not in sketches:
                sketches[name] = QuantileSketch(len(values), size=self.size)
            sketches[name].add(values.flatten(1))

    @property
    def inputs(self) -> dict[str, Stream]:
        """Maps of the padded inputs, by layer. Raises ValueError: a channel with too many ties."""
        return self._maps(self._of_inputs, "read")

    @property
    def outputs(self) -> dict[str, Stream]:
        """Maps of the outputs, behind the functions given. Raises ValueError like ``inputs``."""
        maps = self._maps(self._of_outputs, "written")
        return {
            name: partial(_in_turn, self._activations.get(name, _itself), scores)
            for name, scores in maps.items()
        }

    def ties(self) -> dict[str, Tensor]:
        """Share of the most frequent value of each channel that is read, ``[C]``, by layer."""
        return {name: sketch.largest_ties() for name, sketch in self._of_inputs.items()}

    def _maps(self, sketches: Mapping[str, QuantileSketch], role: str) -> dict[str, Stream]:
        maps: dict[str, Stream] = {}
        for name, sketch in sketches.items():
            ties = sketch.largest_ties()
            many = ((ties > self.max_ties) & (ties < 1)).nonzero().flatten()
            if len(many):
                raise ValueError(
                    f"Copula: argument max_ties: expected no value to make up more than "
                    f"{self.max_ties} of a channel that varies, got {float(ties[many[0]]):.4f} for "
                    f"channel {int(many[0])} of what is {role} by layer '{name}' ({len(many)} "
                    f"such channels); raise max_ties, or measure without the transform"
                )
            maps[name] = partial(_scores, self.model.get_submodule(name), sketch)
        return maps


def _itself(y: Tensor) -> Tensor:
    return y


def _in_turn(first: Stream, second: Stream, y: Tensor) -> Tensor:
    return second(first(y))


def _channel_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _ConvNd) else -1


def _channels_first(layer: nn.Module, tensor: Tensor) -> Tensor:
    return tensor.detach().movedim(_channel_dim(layer), 0)


def _scores(layer: nn.Module, sketch: QuantileSketch, tensor: Tensor) -> Tensor:
    first = _channels_first(layer, tensor)
    ranks = sketch.ranks(first.flatten(1)).view(first.shape)
    scores: Tensor = torch.special.ndtri(ranks / (sketch.count + 1))
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return scores.to(dtype).movedim(0, _channel_dim(layer))


def _live(layer: nn.Module, tensor: Tensor, weights: Tensor) -> Tensor:
    """Which samples or positions count, as an index into all dimensions but the channels."""
    shape = tensor.movedim(_channel_dim(layer), -1).shape[:-1]
    fits = weights.shape == shape[: weights.dim()] and (
        weights.dim() == 1 or not isinstance(layer, _ConvNd)
    )
    if not fits or not bool(((weights == 0) | (weights == 1)).all()):
        raise ValueError(
            f"Copula: argument weights: expected 0 or 1 for each sample, or for each token of a "
            f"linear layer ({tuple(shape)}), got numbers of shape {tuple(weights.shape)}"
        )
    return weights.to(tensor.device) > 0
