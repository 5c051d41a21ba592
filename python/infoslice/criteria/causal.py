"""Mutual information of channels under a maximum-entropy perturbation (Ferianc et al. 2021).

"On Causal Inference for Data-free Structured Pruning", arXiv 2112.10229: the input of the network
is set to maximum-entropy noise, the noise is propagated through the layers, and a channel is worth
the (Gaussian) mutual information between it and the output of the layer that reads it. The text
leaves open which information; the four readings are :data:`Score`. The noise on the layer's output
is part of the definition: without it Y = W X determines X and every term is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.precision import gram_blocks, inverse, own_blocks, own_part, precision_blocks
from infoslice.selection import increasing
from infoslice.statistics import Loss, Shrinkage, ridged

__all__ = ["Score", "causal"]

Score = Literal["marginal", "pairwise", "conditional", "output"]


def causal(
    statistics: GroupStatistics,
    weights: Sequence[Tensor] = (),
    *,
    score: Score = "conditional",
    greedy: bool = True,
    noise_variance: float = 1.0,
    ridge: float = 1e-4,
    shrinkage: Shrinkage | None = None,
    bias_correction: bool = False,
    curvature: Loss | None = None,
) -> Tensor:
    """Information of every channel of a group, in nats, float64 ``[C]``; high = keep.

    With X_c the variables of channel c in the input of a layer (its receptive field), Y the
    layer's output scaled to unit variance and N Gaussian noise (see
    :class:`infoslice.group_statistics.Joint`), summed over the layers that read the group:

    * ``marginal``: I(X_c; Y + N);
    * ``pairwise``: sum_j I(X_c; Y_j + N_j), which takes the outputs for independent;
    * ``conditional``: I(X_c; Y + N | all other channels), what only this channel tells;
    * ``output``: I(X; Y_c + N_c), summed over the layers that *write* the group. The outputs of a
      layer keep their scale, noise is the same on all: it tells channels apart by what they carry.

    ``conditional`` and ``greedy``: channels are removed one after the other, always the one whose
    removal loses least given those still there, and the score of a channel is what its removal
    loses then (at least that of the channel before it). Twins are told apart: one of them goes
    early, the other then stays. O((C r)^3) in all for r variables per channel, see
    :func:`infoslice.ops.backward_elimination`. Not greedy: all from one factorisation. The other
    scores do not depend on ``greedy``.

    For a linear layer the conditional information of one variable is
    ``1/2 log(1 + |w_c|^2 / (s [Sx^-1]_cc))`` with s the noise variance: for large noise the
    least-squares error of leaving the channel out (structured OBS), for small noise a log-volume.
    Where the layer cannot shift its output Sx are moments about the origin: means are signal then.

    Finite samples: an information of a sample covariance is off on average, the more so the more
    variables a layer reads, so that layers do not compare. ``bias_correction`` takes that off, to
    first order in 1/n, n being independent samples (see
    :attr:`infoslice.Moments.effective_count`; all positions where it was not measured), d the
    variables of X and k = tr(Sy (Sy + N)^-1) the outputs that are seen through the noise:

    * ``marginal``, less ``r k / (2 n)``, and ``pairwise``, less ``r m / (2 n (1 + s))``: what a
      channel that tells nothing seems to tell. It is the same for all channels of a layer;
    * ``conditional`` of a linear Y: the covariance of X_c given the others comes out too small by
      ``(n - 1 - d + r) / n``, and is divided by that;
    * ``conditional`` of a measured Y, less ``r k / (2 (n - 1 - d + r))`` with k given X, and
      ``output`` of one, less ``d k / (2 n)`` with k of Y_c. The output of a linear Y has no bias.

    In the greedy order what all channels removed so far lose together is corrected so, r being all
    their variables (the eigenvalues of ``W_P Cov(X_P | rest) W_P'`` taken for equal); that the
    least of many estimates was chosen is not corrected.

    Args:
        statistics: of the group.
        weights: not used.
        score: see above.
        greedy: see above.
        noise_variance: variance of N on each output, relative to the total variance of the layer's
            outputs (with ``curvature``: in units of what one prediction tells), > 0.
        ridge: added to the variances of X, relative to each, see
            :func:`infoslice.statistics.ridged`, >= 0.
        shrinkage: shrink the covariance first, see :meth:`infoslice.Moments.shrunk`. It takes the
            place of the correction.
        bias_correction: see above.
        curvature: of which loss of the network, see :func:`infoslice.statistics.output_curvature`.
            N then is noise of precision F / ``noise_variance``, F the curvature of that loss in
            the outputs, in place of noise that is equal for all outputs of a layer. What errors of
            an output do to the network then counts, and nats of different layers compare: small
            ones are those that the loss rises by.

    Raises:
        ValueError: an argument out of range; a covariance that is not positive definite: more
            samples or a larger ``ridge`` are needed; no more samples than variables and
            ``bias_correction``; both ``shrinkage`` and ``bias_correction``; ``curvature`` with
            score ``output``, or with outputs that are not the linear ones.
    """
    if score not in get_args(Score):
        raise ValueError(
            f"causal: argument score: expected one of {get_args(Score)}, got {score!r}"
        )
    if not noise_variance > 0:
        raise ValueError(f"causal: argument noise_variance: expected > 0, got {noise_variance}")
    if not ridge >= 0:
        raise ValueError(f"causal: argument ridge: expected >= 0, got {ridge}")
    if shrinkage is not None and bias_correction:
        raise ValueError(
            "causal: argument bias_correction: expected False with shrinkage: it is that of a "
            "covariance that was not shrunk, got True"
        )
    layers = statistics.producers if score == "output" else statistics.consumers
    if shrinkage is not None:
        layers = tuple(_shrunk(layer, shrinkage) for layer in layers)
    if score == "conditional":
        layers = tuple(layer.remaining() for layer in layers)
        parts = partial(
            _part, whole=greedy, noise_variance=noise_variance, ridge=ridge,
            counted=bias_correction, curvature=curvature,
        )  # fmt: skip
        return _conditional(statistics, layers, parts, greedy, bias_correction)
    if score == "output" and curvature is not None:
        raise ValueError(
            f"causal: argument curvature: expected None with score 'output', got {curvature!r}"
        )
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    for layer in layers:
        if score == "output":
            total += _output(layer, noise_variance, ridge, bias_correction)
            continue
        joint = layer.joint(noise_variance, ridge, curvature)
        op = ops.marginal_mi if score == "marginal" else ops.pairwise_mi
        group_size = layer.variables.shape[1]
        y = range(joint.inputs, len(joint.covariance))
        if joint.outputs:
            x = layer.variables.flatten().tolist()
            nats = _checked(op(joint.covariance, x, y, group_size=group_size).nats, layer)
            if bias_correction:
                noisy = joint.covariance[joint.inputs :, joint.inputs :]
                seen = (
                    _seen(noisy, noise_variance)
                    if score == "marginal"
                    else float((1 - noise_variance / noisy.diagonal()).sum())
                )
                nats = nats - group_size * seen / (2 * _count(layer, 1))
            total += nats * layer.live_channels()
    return total


def _shrunk(layer: LayerStatistics, shrinkage: Shrinkage) -> LayerStatistics:
    moments = layer.moments
    varies = moments.errors is not None and bool((moments.variance_x > 0).any())
    moments = moments.shrunk(shrinkage, count=moments.effective_count if varies else None)
    return replace(layer, full=lambda: moments, diagonal=lambda: moments)


def _count(layer: LayerStatistics, more_than: int) -> float:
    """Independent samples."""
    moments = layer.moments
    count = moments.kish_count if moments.errors is None else moments.effective_count
    if not count > more_than:
        raise ValueError(
            f"causal: argument bias_correction: expected more samples than variables, got "
            f"{count:g} samples of layer '{layer.name}', of which more than {more_than} are needed"
        )
    return count


def _seen(noisy: Tensor, s: float) -> float:
    """``tr(S (S + s I)^-1)`` of ``S + s I``: how many of its variables stand out of the noise."""
    return len(noisy) - s * float(torch.linalg.inv(noisy).diagonal().sum())


def _output(
    layer: LayerStatistics, noise_variance: float, ridge: float, bias_correction: bool
) -> Tensor:
    """I(X; Y_c + N_c) of every written channel, the same noise on all; 0 for a constant output."""
    sx, sxy, sy = layer.covariances()
    d = len(sx)
    variances = sy.diagonal()
    noise = noise_variance * variances.sum()
    if not noise > 0:
        return torch.zeros(len(layer.variables), dtype=torch.float64)
    noisy = sy + torch.diag(noise.expand(len(sy)))
    joint = torch.cat([torch.cat([ridged(sx, ridge), sxy], 1), torch.cat([sxy.T, noisy], 1)])
    written = (layer.variables + d).flatten().tolist()
    group_size = layer.variables.shape[1]
    found = ops.marginal_mi(joint, written, range(d), group_size=group_size)
    nats = _checked(found.nats, layer)
    if bias_correction and not layer.linear:
        seen = (variances / (variances + noise))[layer.variables].sum(1)
        nats = nats - d * seen / (2 * _count(layer, d))
    return nats


class _Part(NamedTuple):
    """A layer's share in the conditional information.

    Over the group's variables, all else that the layer reads being given: ``a`` the precision of X
    and ``b`` that of X given Y + N, ``[C r, C r]``, or their blocks ``[C, r, r]``. With them
    ``I(X_c; Y + N | rest) = 1/2 (logdet B_cc - logdet A_cc)``. ``freedom`` is n - 1 - d, and
    ``samples`` n; ``outputs`` are m, ``seen`` those of a measured Y that stand out of the noise
    given X, 0 for a linear one.
    """

    a: Tensor
    b: Tensor
    size: int
    samples: float
    freedom: float
    outputs: int
    seen: float

    def corrected(self) -> Tensor:
        """Nats of the blocks, ``[C]``."""
        freedom = self.freedom + self.size
        if self.seen:
            return _half_log_ratio(self.a, self.b) - self.size * self.seen / (2 * freedom)
        return _half_log_ratio(self.a, self.a + self.samples / freedom * (self.b - self.a))

    def corrected_along(self, order: Tensor) -> Tensor:
        """Nats that each channel of an order loses, those before it being gone."""
        r = self.size
        own = (order[:, None] * r + torch.arange(r)).flatten()
        # Forgetting variables is elimination: the determinants of all beginnings at once.
        roots = [torch.linalg.cholesky(p[own][:, own]).diagonal().log() for p in (self.b, self.a)]
        lost = (roots[0] - roots[1]).cumsum(0)[r - 1 :: r]
        gone = torch.arange(1, len(order) + 1, dtype=lost.dtype) * r
        freedom = self.freedom + gone
        if self.seen:
            lost = lost - gone * self.seen / (2 * freedom)
        else:
            rank = gone.clamp(max=self.outputs) / 2
            lost = rank * torch.log1p(self.samples / freedom * torch.expm1(lost / rank))
        return torch.diff(lost, prepend=lost.new_zeros(1))


def _half_log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """``1/2 (logdet b - logdet a)``; NaN where one is not positive definite."""
    if a.shape[-1] == 1:
        return 0.5 * torch.log1p(((b - a) / a)[..., 0, 0])
    return 0.5 * (ops.logdet(b).logdet - ops.logdet(a).logdet)


def _conditional(
    statistics: GroupStatistics,
    layers: Sequence[LayerStatistics],
    part_of: Callable[[LayerStatistics], _Part | None],
    greedy: bool,
    bias_correction: bool,
) -> Tensor:
    """Conditional information, one-shot or by backward elimination."""
    channels = statistics.channels
    live = torch.zeros(channels, dtype=torch.bool)
    parts = []
    for layer in layers:
        live |= layer.live_channels()
        part = part_of(layer)
        if part is not None:
            parts.append(part)
    scores = torch.zeros(channels, dtype=torch.float64)
    if not parts:
        return scores
    if not greedy:
        for part in parts:
            nats = part.corrected() if bias_correction else _half_log_ratio(part.a, part.b)
            scores += nats
        _refuse_singular(not bool(scores[live].isfinite().all()))
        return scores.masked_fill(~live, 0.0)
    order, losses, info = ops.backward_elimination(
        [part.a for part in parts],
        [part.b for part in parts],
        int(live.sum()),
        group_size=[part.size for part in parts],
        keep=(~live).nonzero().flatten(),
    )
    _refuse_singular(bool(info))
    least = 0.0
    if bias_correction:
        losses = torch.stack([part.corrected_along(order) for part in parts]).sum(0)
        least = min(0.0, float(losses.min())) if len(losses) else 0.0
    scores[order] = increasing(losses - least) + least
    return scores


def _part(
    layer: LayerStatistics,
    *,
    whole: bool,
    noise_variance: float,
    ridge: float,
    counted: bool,
    curvature: Loss | None,
) -> _Part | None:
    """None if none of the layer's outputs varies; matrices if ``whole``, else blocks."""
    variables, d = layer.variables, len(layer.mean)
    size = variables.shape[1]
    samples = _count(layer, 1 + d - size) if counted else 0.0
    freedom = samples - 1 - d
    if not layer.linear and curvature is None:
        joint = layer.joint(noise_variance, ridge)
        m = joint.outputs
        if not m:
            return None
        a = inverse("causal", joint.covariance[:d, :d], layer)
        b = inverse("causal", joint.covariance, layer)
        # B's block of Y is the inverse of what X leaves of Y + N.
        seen = m - noise_variance * float(b.diagonal()[d:].sum()) if counted else 0.0
        of_group = own_part if whole else own_blocks
        a, b = (of_group(p, variables) for p in (a, b))
        return _Part(a, b, size, samples, freedom, m, seen)
    weight = layer.scaled_weight(curvature) / noise_variance**0.5
    m = len(weight)
    if not m:
        return None
    sx = layer.signal(ridge)
    # Given W X + N, X has W'W / s more precision (Woodbury): no joint covariance is inverted.
    if whole:
        a = own_part(inverse("causal", sx, layer), variables)
        own = weight[:, variables.flatten()]
        return _Part(a, a + own.T @ own, size, samples, freedom, m, 0.0)
    a = precision_blocks("causal", sx, layer)
    return _Part(a, a + gram_blocks(weight, variables), size, samples, freedom, m, 0.0)


def _refuse_singular(singular: bool) -> None:
    if singular:
        raise ValueError(
            "causal: argument ridge: expected a precision matrix that stays positive definite, got "
            "a singular block; raise ridge or the number of samples"
        )


def _checked(nats: Tensor, layer: LayerStatistics) -> Tensor:
    if not bool(nats.isfinite().all()):
        raise ValueError(
            f"causal: argument ridge: expected a positive definite covariance of layer "
            f"'{layer.name}' ({layer.moments.count:g} samples), got a singular one; raise ridge or "
            f"the number of samples"
        )
    return nats
