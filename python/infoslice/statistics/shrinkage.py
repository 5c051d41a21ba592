"""How sample covariances are made invertible: by a ridge, or by as much as the samples ask for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ledoit_wolf_intensity", "oas_intensity", "ridged"]


def ridged(moments: Tensor, ridge: float) -> Tensor:
    """``S + ridge * diag(S)``: a penalty that follows the scale of each variable, ``[d, d]``.

    A multiple of the mean variance would be nothing to a variable of large variance and all to the
    others: in language models single neurons have a million times the variance of the rest. A
    variable of less than 1e-3 of the median variance of those that vary, or of none, counts as one
    of that; where nothing varies, S is returned as it is.
    """
    own = moments.diagonal()
    live = own[own > 0]
    if not len(live):
        return moments
    return moments + torch.diag(ridge * own.clamp_min(1e-3 * float(live.median())))


def ledoit_wolf_intensity(covariance: Tensor, fourth: float, count: float) -> float:
    """rho in [0, 1] of Ledoit and Wolf 2004, "A well-conditioned estimator".

    With S the covariance (divided by n) of d variables, mu = tr(S) / d::

        rho = min(beta, delta) / delta,   delta = |S - mu I|_F^2 / d,
        beta = (E|x - mean|^4 - |S|_F^2) / (d n)

    For independent samples of any distribution with fourth moments.

    Args:
        covariance: S ``[d, d]``.
        fourth: the mean of ``|x - mean|^4``.
        count: n, independent samples.

    Raises:
        ValueError: ``count`` < 1.
    """
    _check("ledoit_wolf_intensity", count)
    d = len(covariance)
    trace, square = float(covariance.diagonal().sum()), float(covariance.square().sum())
    delta = (square - trace**2 / d) / d
    beta = (fourth - square) / (d * count)
    return 0.0 if beta <= 0 else min(beta, delta) / delta if delta > 0 else 1.0


def oas_intensity(covariance: Tensor, count: float) -> float:
    """rho in [0, 1] of Chen, Wiesel, Eldar and Hero 2010, "oracle approximating shrinkage".

    With S the covariance (divided by n) of d variables and mu = tr(S) / d, as scikit-learn has it::

        rho = min(1, (|S|_F^2 / d^2 + mu^2) / ((n + 1) (|S|_F^2 / d^2 - mu^2 / d)))

    For independent Gaussian samples; needs no more than S and n.

    Raises:
        ValueError: ``count`` < 1.
    """
    _check("oas_intensity", count)
    d = len(covariance)
    mu, alpha = float(covariance.diagonal().mean()), float(covariance.square().mean())
    least = (count + 1) * (alpha - mu**2 / d)
    return 1.0 if least <= 0 else min(1.0, (alpha + mu**2) / least)


def _check(function: str, count: float) -> None:
    if not count >= 1:
        raise ValueError(f"{function}: argument count: expected at least 1, got {count}")
