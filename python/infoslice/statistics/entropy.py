"""Bias of Gaussian entropies and informations of sample covariances, in nats.

The log-determinant of a sample covariance is too small on average, the more so the more variables
there are: an information computed from one is too large, and more so in wide layers. Source: Misra,
Singh and Demchuk 2005; as used by Ince et al. 2017 (Gaussian copula mutual information).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from infoslice import ops

__all__ = ["corrected_gaussian_mi", "gaussian_entropy_bias", "gaussian_mi_bias"]


def gaussian_entropy_bias(count: float, dims: int, *, correction: int = 0) -> float:
    """Mean error of ``1/2 logdet(2 pi e S)``, S the covariance of ``count`` samples; negative.

    With n samples of d Gaussian variables, ``(n - correction) S`` is Wishart with n - 1 degrees of
    freedom, and exactly::

        bias = d/2 log(2 / (n - correction)) + 1/2 sum_{i=1..d} digamma((n - i) / 2)

    Args:
        count: n, independent samples; need not be whole (an effective number of samples).
        dims: d >= 0.
        correction: S is divided by ``n - correction``; 0 in :class:`infoslice.Moments`.

    Raises:
        ValueError: ``count <= dims``: S is singular.
    """
    if not count > dims or not count > correction:
        raise ValueError(
            f"gaussian_entropy_bias: argument count: expected more samples than the {dims} "
            f"variables, got {count}; correct fewer variables at once, or regularise instead"
        )
    arguments = (count - torch.arange(1, dims + 1, dtype=torch.float64)) / 2
    return 0.5 * (dims * math.log(2 / (count - correction)) + float(arguments.digamma().sum()))


def gaussian_mi_bias(count: float, x: int, y: int, *, given: int = 0) -> float:
    """Mean error of a Gaussian I(X; Y | Z) of ``count`` samples; positive, about ``x y / (2 n)``.

    ``x``, ``y`` and ``given`` are the numbers of variables, all of them *sampled*. Where instead
    Y = W X + N is derived from the covariance of X and a stated noise, as the causal score does,
    the joint covariance is no sample of Y and this is not its bias.

    Raises:
        ValueError: ``count <= x + y + given``.
    """

    def of(dims: int) -> float:
        return gaussian_entropy_bias(count, dims)

    return of(x + given) + of(y + given) - of(given) - of(x + y + given)


def corrected_gaussian_mi(
    covariance: Tensor, x: Sequence[int], y: Sequence[int], count: float
) -> float:
    """I(X; Y) in nats of a sample covariance ``[d, d]``, less its bias.

    Unbiased for Gaussian variables; so below 0 now and then where they are independent. The
    correction is that of an unshrunk covariance: shrink or correct, not both.

    Raises:
        ValueError: ``count <= len(x) + len(y)``, or a covariance that is not positive definite.
    """
    bias = gaussian_mi_bias(count, len(x), len(y))
    found = ops.gaussian_mi(covariance, x, y)
    if int(found.info):
        raise ValueError(
            f"corrected_gaussian_mi: argument covariance: expected a positive definite matrix, got "
            f"one whose leading minor {int(found.info)} is not"
        )
    return float(found.nats) - bias
