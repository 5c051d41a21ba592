"""What the tests of Gaussian information share."""

from __future__ import annotations

import torch

from infoslice import ops

GROUPED = ["marginal_mi", "conditional_mi", "pairwise_mi"]
EVERY = ["gaussian_mi", *GROUPED]


def call(name: str, cov, x, y, group_size: int = 1, **options):
    if name == "gaussian_mi":
        return ops.gaussian_mi(cov, x, y, **options)
    return getattr(ops, name)(cov, x, y, group_size=group_size, **options)


def linear_layer(n: int, m: int, noise: float, spd, condition: float = 30.0):
    """Joint covariance of X and Y = W X without the noise, and its parts."""
    sx = spd(n, condition)
    w = torch.randn(m, n, dtype=torch.float64) / n**0.5
    joint = torch.cat([torch.cat([sx, sx @ w.T], 1), torch.cat([w @ sx, w @ sx @ w.T], 1)])
    return joint, sx, w, list(range(n)), list(range(n, n + m)), noise
