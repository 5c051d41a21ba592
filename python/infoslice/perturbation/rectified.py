"""Means, variances and covariances of rectified Gaussian variables."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["rectified", "rectified_covariance"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def rectified(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of ``relu(x)`` for Gaussian x, and P(x > 0); all ``[C]``, float64.

    With a = mean / s: ``mean Phi(a) + s phi(a)``, and the second moment ``(mean^2 + s^2) Phi(a) +
    mean s phi(a)``. By Stein's lemma ``Cov(relu(x), v) = P(x > 0) Cov(x, v)`` for v Gaussian with
    x. Of a constant P is 1 where it is positive and 0 elsewhere.
    """
    s = variance.sqrt()
    a = torch.where(s > 0, mean / s, torch.where(mean > 0, torch.inf, -torch.inf))
    above = torch.special.ndtr(a)
    density = torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * above + s * density
    # E relu(x)^2 - first^2, without cancellation where x is hardly ever negative
    below = torch.special.ndtr(-a)
    missing = s * density - mean * below  # E relu(-x) = first - mean
    left = variance * above - mean * s * density + mean.square() * below - missing.square()
    right = variance * above + mean * s * density + mean.square() * above - first.square()
    return first, torch.where(a > 0, left, right).clamp_min(0), above


def rectified_covariance(
    mean: tuple[Tensor, Tensor], variance: tuple[Tensor, Tensor], covariance: Tensor
) -> Tensor:
    """``Cov(relu(x), relu(y))`` for jointly Gaussian x ``[C]`` and y ``[D]``.

    By Plackett's identity the covariance has the derivative ``s t P(x > 0, y > 0)`` in the
    correlation, and that probability the derivative ``phi2``, the bivariate density at the means;
    integrated twice, with a = mean / s and b = mean / t::

        s t (rho Phi(a) Phi(b) + int_0^asin(rho) (rho - sin u) e(u) du / 2 pi)
        e(u) = exp(-(a^2 + b^2 - 2 a b sin u) / (2 cos^2 u))

    by Gauss-Legendre quadrature, exact to 1e-6 of ``s t``. For means of zero this is the arc-cosine
    kernel of Cho and Saul (2009).

    Args:
        mean: ``[C]`` and ``[D]``, float64.
        variance: ``[C]`` and ``[D]``.
        covariance: of x and y, ``[..., C, D]``.
    """
    s, t = variance[0].sqrt().unsqueeze(1), variance[1].sqrt().unsqueeze(0)
    scale = s * t
    # Rounding may carry a correlation past one. A constant covaries with nothing.
    rho = torch.where(scale > 0, covariance / scale, 0.0).clamp(-1, 1)
    a = torch.where(s > 0, mean[0].unsqueeze(1) / s, 0.0)
    b = torch.where(t > 0, mean[1].unsqueeze(0) / t, 0.0)
    squares, product, end = (a.square() + b.square()) / 2, a * b, rho.asin()
    integral = torch.zeros_like(rho)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        sine = (end * ((node + 1) / 2)).sin()
        energy = (squares - product * sine) / (1 - sine.square())
        integral += (rho - sine) * torch.exp(-energy) * (weight / 2)
    both = torch.special.ndtr(a) * torch.special.ndtr(b)
    result: Tensor = scale * (rho * both + integral * end / (2 * math.pi))
    return result
