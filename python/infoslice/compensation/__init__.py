"""What is done to the layers left so that they replace what was cut away."""

from __future__ import annotations

from infoslice.compensation.batch_norm import restate_
from infoslice.compensation.merge import merge_
from infoslice.compensation.one_shot import fold_mean_, linear_moments
from infoslice.compensation.refit import joint_moments, refit_, refittable

__all__ = [
    "fold_mean_",
    "joint_moments",
    "linear_moments",
    "merge_",
    "refit_",
    "refittable",
    "restate_",
]
