"""Mutual information of channels under a maximum-entropy perturbation (Ferianc et al. 2021).

"On Causal Inference for Data-free Structured Pruning", arXiv 2112.10229: the input of the network
is set to maximum-entropy noise, the noise is propagated through the layers, and a channel is worth
the (Gaussian) mutual information between it and the output of the layer that reads it. The text
leaves open which information; the four readings are :data:`Score`. The noise on the layer's output
is part of the definition: without it Y = W X determines X and every term is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import GroupStatistics, LayerStatistics
from infoslice.selection import increasing

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
) -> Tensor:
    """Information of every channel of a group, in nats, float64 ``[C]``; high = keep.

    With X_c the variables of channel c in the input of a layer (its receptive field), Y the
    layer's output scaled to unit variance and N Gaussian noise (see
    :class:`infoslice.group_statistics.Joint`), summed over the layers that read the group:

    * ``marginal``: I(X_c; Y + N);
    * ``pairwise``: sum_j I(X_c; Y_j + N_j), which takes the outputs for independent;
    * ``conditional``: I(X_c; Y + N | all other channels), what only this channel tells;
    * ``output``: I(X; Y_c + N_c), summed over the layers that *write* the group.

    ``conditional`` and ``greedy``: channels are removed one after the other, always the one whose
    removal loses least given those still there, and the score of a channel is what its removal
    loses then (at least that of the channel before it). Twins are told apart: one of them goes
    early, the other then stays. O((C r)^3) in all for r variables per channel, see
    :func:`infoslice.ops.backward_elimination`. Not greedy: all from one factorisation. The other
    scores do not depend on ``greedy``.

    For a linear layer the conditional information of one variable is
    ``1/2 log(1 + |w_c|^2 / (s [Sx^-1]_cc))`` with s the noise variance: for large noise the
    least-squares error of leaving the channel out (structured OBS), for small noise a log-volume.

    Args:
        statistics: of the group.
        weights: not used.
        score: see above.
        greedy: see above.
        noise_variance: variance of N on each output, relative to the total variance of the layer's
            outputs, > 0.
        ridge: added to the variances of X, relative to their mean, >= 0.

    Raises:
        ValueError: an argument out of range; or a covariance that is not positive definite: more
            samples or a larger ``ridge`` are needed.
    """
    if score not in get_args(Score):
        raise ValueError(
            f"causal: argument score: expected one of {get_args(Score)}, got {score!r}"
        )
    if not noise_variance > 0:
        raise ValueError(f"causal: argument noise_variance: expected > 0, got {noise_variance}")
    if not ridge >= 0:
        raise ValueError(f"causal: argument ridge: expected >= 0, got {ridge}")
    total = torch.zeros(statistics.channels, dtype=torch.float64)
    if score == "output":
        for layer in statistics.producers:
            total += _output(layer, noise_variance, ridge)
    elif score == "conditional":
        return _conditional(statistics, greedy, noise_variance, ridge)
    else:
        for layer in statistics.consumers:
            joint = layer.joint(noise_variance, ridge)
            op = ops.marginal_mi if score == "marginal" else ops.pairwise_mi
            group_size = layer.variables.shape[1]
            y = range(joint.inputs, len(joint.covariance))
            if joint.outputs:
                x = layer.variables.flatten().tolist()
                found = op(joint.covariance, x, y, group_size=group_size)
                total += _checked(found.nats, layer) * layer.live_channels()
    return total


def _output(layer: LayerStatistics, noise_variance: float, ridge: float) -> Tensor:
    """I(X; Y_c + N_c) of every written channel; a constant output tells nothing."""
    sx, sxy, sy = layer.covariances()
    d = len(sx)
    variances = sy.diagonal()
    total = variances.sum()
    # N is scaled as in Joint: the variance that one standardised output would have in it.
    count = int((variances > torch.finfo(torch.float64).eps * variances.max()).sum())
    if not total > 0:
        return torch.zeros(len(layer.variables), dtype=torch.float64)
    noisy = sy + torch.diag(noise_variance * count * variances + (variances <= 0))
    joint = torch.cat([torch.cat([sx, sxy], 1), torch.cat([sxy.T, noisy], 1)])
    joint.diagonal()[:d] += ridge * sx.diagonal().mean()
    written = (layer.variables + d).flatten().tolist()
    group_size = layer.variables.shape[1]
    found = ops.marginal_mi(joint, written, range(d), group_size=group_size)
    return _checked(found.nats, layer)


def _conditional(
    statistics: GroupStatistics, greedy: bool, noise_variance: float, ridge: float
) -> Tensor:
    """Conditional information, one-shot or by backward elimination.

    Of each layer two precision matrices over the group's variables (all else that the layer reads
    is given): ``A`` of X, ``B`` of X given Y + N. Then I(X_c; Y | rest) =
    1/2 (logdet B_cc - logdet A_cc).
    """
    channels = statistics.channels
    live = torch.zeros(channels, dtype=torch.bool)
    precision: list[Tensor] = []
    given_y: list[Tensor] = []
    sizes: list[int] = []
    for layer in statistics.consumers:
        live |= layer.live_channels()
        joint = layer.joint(noise_variance, ridge)
        if not joint.outputs:
            continue
        own = layer.variables.flatten()
        a = _inverse(joint.covariance[: joint.inputs, : joint.inputs], layer)
        b = _inverse(joint.covariance, layer)
        # Rows of the precision matrix condition on all that is left out of the selection.
        precision.append(a[own][:, own])
        given_y.append(b[own][:, own])
        sizes.append(layer.variables.shape[1])
    order, dead = live.nonzero().flatten(), (~live).nonzero().flatten()
    losses = torch.zeros(len(order), dtype=torch.float64)
    if greedy and sizes:
        order, losses, info = ops.backward_elimination(
            precision, given_y, len(order), group_size=sizes, keep=dead
        )
        _refuse_singular(bool(info))
    elif sizes:
        for a, b, size in zip(precision, given_y, sizes, strict=True):
            shape = (channels, size, channels, size)
            of_b, of_a = (ops.logdet(p.view(shape)[order, :, order, :]).logdet for p in (b, a))
            losses += 0.5 * (of_b - of_a)
        _refuse_singular(not bool(losses.isfinite().all()))
    if greedy:
        losses = increasing(losses)
    scores = torch.zeros(channels, dtype=torch.float64)
    scores[order] = losses
    return scores


def _refuse_singular(singular: bool) -> None:
    if singular:
        raise ValueError(
            "causal: argument ridge: expected a precision matrix that stays positive definite, got "
            "a singular block; raise ridge or the number of samples"
        )


def _inverse(matrix: Tensor, layer: LayerStatistics) -> Tensor:
    factor = ops.cholesky(matrix)
    if int(factor.info):
        raise ValueError(
            f"causal: argument ridge: expected a positive definite covariance of layer "
            f"'{layer.name}' ({layer.moments.count} samples of {len(matrix)} variables), got one "
            f"whose leading minor {int(factor.info)} is not; raise ridge or the number of samples"
        )
    return torch.cholesky_inverse(factor.factor)


def _checked(nats: Tensor, layer: LayerStatistics) -> Tensor:
    if not bool(nats.isfinite().all()):
        raise ValueError(
            f"causal: argument ridge: expected a positive definite covariance of layer "
            f"'{layer.name}' ({layer.moments.count} samples), got a singular one; raise ridge or "
            f"the number of samples"
        )
    return nats
