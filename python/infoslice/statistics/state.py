"""Moments as named tensors, to be saved and sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from infoslice.statistics.moments import Moments
from infoslice.statistics.sampling_errors import SamplingErrors

__all__ = ["from_tensors", "to_tensors"]

_ERRORS = tuple(field.name for field in fields(SamplingErrors))
_OPTIONAL = {"squared_weights", "transformed"}
_TENSORS = ("mean_x", "mean_y", "scatter_x", "scatter_xy", "scatter_y")


def to_tensors(moments: Moments) -> dict[str, Tensor]:
    """All fields by name; numbers become float64 tensors without dimensions."""
    found = {name: getattr(moments, name) for name in _TENSORS}
    found["count"] = torch.tensor(moments.count, dtype=torch.float64)
    if moments.squared_weights is not None:
        found["squared_weights"] = torch.tensor(moments.squared_weights, dtype=torch.float64)
    if moments.transformed:
        found["transformed"] = torch.tensor(True)
    if moments.errors is not None:
        found |= {name: getattr(moments.errors, name) for name in _ERRORS}
    return found


def from_tensors(tensors: Mapping[str, Tensor]) -> Moments:
    """What :func:`to_tensors` was given. Raises ValueError for other names."""
    required = {*_TENSORS, "count"}
    names = set(tensors)
    optional = names - required
    if not required <= names or not optional <= {*_OPTIONAL, *_ERRORS}:
        raise ValueError(
            f"from_tensors: argument tensors: expected the fields of moments, got {sorted(names)}"
        )
    errors = None
    if optional - _OPTIONAL:
        errors = SamplingErrors(*(tensors[name] for name in _ERRORS))
    squares = tensors.get("squared_weights")
    return Moments(
        float(tensors["count"]),
        tensors["mean_x"],
        tensors["mean_y"],
        tensors["scatter_x"],
        tensors["scatter_xy"],
        tensors["scatter_y"],
        None if squares is None else float(squares),
        errors,
        "transformed" in tensors,
    )
