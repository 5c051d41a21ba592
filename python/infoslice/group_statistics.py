"""What a criterion is given: the statistics of the layers that write and read a channel group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from infoslice import ops
from infoslice.graph import ChannelGroup
from infoslice.group_weights import batch_norm_scales, incoming, outgoing, positions
from infoslice.statistics import (
    Loss,
    Moments,
    Samples,
    ridged,
    variables_per_channel,
    weight_matrix,
)

__all__ = ["GroupStatistics", "Joint", "LayerStatistics", "NotMeasuredError"]


class NotMeasuredError(Exception):
    """A criterion asked for what a group lacks or for a layer that cannot be measured."""


@dataclass(frozen=True, eq=False)
class Joint:
    """Covariance of ``[X; Y + N]`` of a layer, ready for the information ops.

    ``covariance`` ``[d + m, d + m]``, float64: the first ``d`` variables are the inputs X, the rest
    the outputs Y in units of the noise N, which is independent Gaussian of variance
    ``noise_variance`` on each of them. Each output is scaled to variance 1 / m, so that
    ``noise_variance`` compares the noise with the *total* signal of the layer: at 1 the whole layer
    is observed at a signal-to-noise ratio of one, whatever its width, and nats of different layers
    compare. Or, with a curvature F of the network's loss, ``F^1/2 Y``: N then stands for errors
    that move the loss, and at 1 the layer is observed as precisely as one prediction of the network
    tells its output. The moments of X are those of :meth:`LayerStatistics.signal`, and a linear Y
    follows from them.
    """

    covariance: Tensor
    inputs: int

    @property
    def outputs(self) -> int:
        """m, the outputs that vary."""
        return len(self.covariance) - self.inputs

    def information(self, variables: Tensor) -> float:
        """I(X_variables; Y + N) in nats; 0 for no variables. NaN if not positive definite."""
        if not len(variables) or not self.outputs:
            return 0.0
        y = range(self.inputs, len(self.covariance))
        return float(ops.gaussian_mi(self.covariance, variables.tolist(), y).nats)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """A layer that reads or writes the channels of a group.

    ``weight``: float64 ``[m, d]``, the layer as a matrix. ``variables`` int64 ``[C, r]``: for
    channel c of the group, its columns of X (a layer that reads) or its rows of Y (one that
    writes); where the weight is. ``shifts``: whether the layer can shift its output, by a bias or
    by the mean of a batch norm that alone follows it. ``full`` and ``diagonal`` measure;
    ``moments``, ``mean`` and ``variance`` call them when first read, and who needs no more than
    these two pays no covariance.
    ``curvature`` measures how the network's loss minds errors of the outputs, ``[m, m]``.
    """

    name: str
    full: Callable[[], Moments]
    diagonal: Callable[[], Moments]
    weight: Tensor
    variables: Tensor
    shifts: bool = True
    sample: Callable[[], Samples] | None = None
    curvature: Callable[[Loss], Tensor] | None = None

    @cached_property
    def moments(self) -> Moments:
        """Of its input X and, where measured, its output Y (see :class:`Moments`)."""
        return self.full()

    @property
    def measured(self) -> bool:
        """Whether ``moments`` have been looked at."""
        return "moments" in self.__dict__

    @cached_property
    def _marginal(self) -> Moments:
        usable = self.measured and not self.moments.transformed
        return self.moments if usable else self.diagonal()

    @cached_property
    def samples(self) -> Samples:
        """Of what it reads and writes, averaged over positions (see :class:`Samples`).

        Raises NotMeasuredError where there is nothing to draw them from.
        """
        if self.sample is None:
            raise NotMeasuredError(f"no samples of '{self.name}' can be had")
        return self.sample()

    @property
    def mean(self) -> Tensor:
        """Of X, float64 ``[d]``."""
        return self._marginal.mean_x

    @property
    def variance(self) -> Tensor:
        """Of each variable of X, divided by n, float64 ``[d]``."""
        return self._marginal.variance_x

    def second_moments(self, *, centred: bool) -> Tensor:
        """Of X, float64 ``[d, d]``: its covariance, or ``E[X X']`` about the origin.

        Raises ValueError for moments of normal scores: errors of outputs are those of the values.
        """
        if self.moments.transformed:
            raise ValueError(
                f"second_moments: expected moments of what layer '{self.name}' reads, got those of "
                f"a transform of it; use transform=None with this criterion"
            )
        s = self.moments.covariance_x
        return s if centred else s + torch.outer(self.mean, self.mean)

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of X ``[d, d]``, between X and Y ``[d, m]``, and of Y ``[m, m]``, without noise.

        Where no output was measured Y is the linear map ``weight @ X``, and its covariances follow
        from those of X without sampling error.
        """
        sx = self.moments.covariance_x
        if not self.linear:
            return sx, self.moments.covariance_xy, self.moments.covariance_y
        sxy = sx @ self.weight.T
        return sx, sxy, self.weight @ sxy

    @property
    def linear(self) -> bool:
        """Whether Y is the linear map ``weight @ X``, and no output was measured."""
        return not self.moments.covariance_y.numel()

    def signal(self, ridge: float) -> Tensor:
        """Moments of X that informations are taken of, with a ridge, ``[d, d]``.

        The covariance; for a linear Y about the origin if the layer cannot shift its output, whose
        mean then has to be transmitted like all else.
        """
        s = self.moments.covariance_x
        if self.linear and not self.shifts and not self.moments.transformed:
            s = s + torch.outer(self.mean, self.mean)
        return ridged(s, ridge)

    def joint(self, noise_variance: float, ridge: float, curvature: Loss | None = None) -> Joint:
        """Of X and the noisy, scaled Y; see :class:`Joint`. Constant outputs are dropped."""
        sx = self.signal(ridge)
        d = len(sx)
        if self.linear or curvature is not None:
            weight = self.scaled_weight(curvature)
            cross = sx @ weight.T
            own = weight @ cross
        else:
            sy = self.moments.covariance_y
            live, scale = _scale(sy.diagonal())
            cross = self.moments.covariance_xy[:, live] * scale
            own = sy[live][:, live] * scale * scale[:, None]
        joint = torch.cat([torch.cat([sx, cross], 1), torch.cat([cross.T, own], 1)])
        joint.diagonal()[d:] += noise_variance
        return Joint(joint, d)

    def scaled_weight(self, curvature: Loss | None = None) -> Tensor:
        """The linear map to the outputs of :class:`Joint`; rows of constant outputs are dropped."""
        if curvature is not None:
            if not self.linear or self.moments.transformed:
                raise ValueError(
                    f"joint: argument curvature: expected None for layer '{self.name}', of which "
                    f"outputs or a transform were measured: the loss minds errors of the plain "
                    f"output; use target='pre' and transform=None"
                )
            return self.weighed(curvature)
        live, scale = _scale(((self.weight @ self.signal(0.0)) * self.weight).sum(1))
        return self.weight[live] * scale[:, None]

    def weighed(self, loss: Loss) -> Tensor:
        """``F^1/2 W``, float64 ``[m, d]``: half the square of an error of it is a rise of the loss.

        F is the curvature of the loss in the layer's output, see
        :func:`infoslice.statistics.output_curvature`. Raises NotMeasuredError where there is
        nothing to measure it on.
        """
        if self.curvature is None:
            raise NotMeasuredError(f"no curvature of the loss at '{self.name}' can be had")
        values, vectors = torch.linalg.eigh(self.curvature(loss).to(self.weight.device))
        # Rounding alone makes an eigenvalue of a sum of squares negative.
        weighed: Tensor = (vectors * values.clamp_min(0).sqrt()) @ (vectors.T @ self.weight)
        return weighed

    def remaining(self) -> LayerStatistics:
        """Without the variables of other groups that are not read: all their weights are zero.

        They are those of channels removed before, which cannot make up for anything.
        """
        read = (self.weight != 0).any(0)
        read[self.variables.flatten()] = True
        if bool(read.all()):
            return self
        index, places = read.nonzero().flatten(), read.cumsum(0) - 1
        moments = replace(
            self.moments,
            mean_x=self.moments.mean_x[index],
            scatter_x=self.moments.scatter_x[index][:, index],
            scatter_xy=self.moments.scatter_xy[index],
            errors=None,
        )
        return replace(
            self,
            full=lambda: moments,
            diagonal=lambda: moments,
            weight=self.weight[:, index],
            variables=places[self.variables],
            sample=None,
        )

    def live_channels(self) -> Tensor:
        """Bool ``[C]``: channels of which some input variable varies."""
        return (self.moments.variance_x[self.variables] > 0).any(1)


def _scale(variances: Tensor) -> tuple[Tensor, Tensor]:
    """Which outputs vary, bool ``[m]``, and what gives these a total variance of one, alike."""
    live = variances > torch.finfo(torch.float64).eps * variances.max().clamp_min(0)
    return live, (variances[live] * live.sum()).rsqrt()


class GroupStatistics:
    """Statistics of one group, measured when a criterion first asks for them.

    Attributes:
        name: of the group.
        channels: C, how many the group has.
        consumers: the layers that read the channels.
        producers: the layers that write them.
    """

    def __init__(
        self,
        group: ChannelGroup,
        model: nn.Module,
        moments: Callable[[], Mapping[str, Moments]],
        norms: Mapping[str, str] | None = None,
        *,
        diagonals: Callable[[], Mapping[str, Moments]] | None = None,
        not_measurable: Mapping[str, str] | None = None,
        samples: Callable[[str], Samples] | None = None,
        curvature: Callable[[Loss], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """``moments`` and ``diagonals`` measure full and diagonal moments, by layer.

        ``norms``: layer -> the batch norm that alone follows it. ``not_measurable``: layer -> why.
        ``samples`` draws those of a layer, ``curvature`` measures that of all consumers.
        """
        self.name = group.name
        self.channels = group.channels
        self._group, self._model = group, model
        self._moments, self._diagonals = moments, diagonals or moments
        self._norms, self._not_measurable = norms or {}, not_measurable or {}
        self._samples, self._curvature = samples, curvature

    @cached_property
    def consumers(self) -> tuple[LayerStatistics, ...]:
        """In execution order."""
        return tuple(self._layer(name, "in") for name in self._group.consumers)

    @cached_property
    def producers(self) -> tuple[LayerStatistics, ...]:
        """In execution order."""
        return tuple(self._layer(name, "out") for name in self._group.producers)

    @property
    def moments(self) -> Mapping[str, Moments]:
        """Of every layer measured, by name."""
        return self._moments()

    @property
    def diagonals(self) -> Mapping[str, Moments]:
        """Of every layer of which at least means and variances were measured, by name."""
        return self._diagonals()

    @property
    def measured(self) -> bool:
        """Whether the moments of all consumers have been looked at."""
        return "consumers" in self.__dict__ and all(layer.measured for layer in self.consumers)

    # What follows reads weights alone, so that no forward is run for it.

    @cached_property
    def incoming(self) -> tuple[Tensor, ...]:
        """All that makes each channel what it is, float64 ``[C, k]`` for each module.

        See :func:`infoslice.group_weights.incoming`.
        """
        return incoming(self._group, self._model, self._norms)

    @cached_property
    def outgoing(self) -> tuple[Tensor, ...]:
        """The weights that read each channel, float64 ``[C, r, m]`` for each consumer.

        Raises NotMeasuredError if no weights read the group.
        """
        found = outgoing(self._group, self._model)
        if not found:
            raise NotMeasuredError(f"no weights read the channels of '{self.name}'")
        return found

    @cached_property
    def batch_norm_scales(self) -> tuple[Tensor, ...]:
        """Learned scales of the batch norms that carry the channels, float64 ``[C, n]`` each.

        Raises NotMeasuredError if there are none.
        """
        found = batch_norm_scales(self._group, self._model)
        if not found:
            raise NotMeasuredError(f"no batch norm with learned scales carries '{self.name}'")
        return found

    def _layer(self, name: str, role: str) -> LayerStatistics:
        if name in self._not_measurable:
            raise NotMeasuredError(self._not_measurable[name])
        layer = self._model.get_submodule(name)
        taps = variables_per_channel(layer) if role == "in" else 1
        weight = weight_matrix(layer)
        with torch.device(weight.device):
            maps = [
                positions(s.index_map)
                for s in self._group.slices
                if s.module == name and s.role == role and s.tensor.endswith("weight")
            ]
            variables = torch.cat(maps, 1)[:, :, None] * taps + torch.arange(taps)
        shifts = getattr(layer, "bias", None) is not None or name in self._norms
        return LayerStatistics(
            name,
            lambda: self.moments[name],
            lambda: self.diagonals[name],
            weight,
            variables.flatten(1),
            shifts,
            partial(self._samples, name) if self._samples else None,
            partial(self._curvature_of, name) if self._curvature and role == "in" else None,
        )

    def _curvature_of(self, name: str, loss: Loss) -> Tensor:
        assert self._curvature is not None
        return self._curvature(loss)[name]
