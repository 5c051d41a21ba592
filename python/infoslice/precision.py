"""Inverses of covariances of what a layer reads, for criteria of least squares and information."""

from __future__ import annotations

import torch
from torch import Tensor

from infoslice import ops
from infoslice.group_statistics import LayerStatistics

__all__ = ["gram_blocks", "inverse", "own_blocks", "own_part", "precision_blocks"]


def inverse(function: str, matrix: Tensor, layer: LayerStatistics) -> Tensor:
    """Of a positive definite matrix; if it is not, ValueError in the name of ``function``."""
    factor = ops.cholesky(matrix)
    _refuse(function, int(factor.info), matrix, layer)
    return torch.cholesky_inverse(factor.factor)


def own_part(matrix: Tensor, variables: Tensor) -> Tensor:
    """``[C r, C r]``: of ``[d, d]`` the part of the channels, one after the other."""
    if _all(variables, len(matrix)):
        return matrix
    own = variables.flatten()
    return matrix[own][:, own]


def own_blocks(matrix: Tensor, variables: Tensor) -> Tensor:
    """``[C, r, r]``: of ``[d, d]`` the block of each channel, its variables given as ``[C, r]``."""
    return matrix[variables[:, :, None], variables[:, None, :]]


def gram_blocks(weight: Tensor, variables: Tensor) -> Tensor:
    """:func:`own_blocks` of ``W'W``, W being ``[m, d]``."""
    if variables.shape[1] == 1:
        return weight.square().sum(0)[variables][:, :, None]
    rows = weight.T[variables]
    return rows @ rows.mT


def precision_blocks(function: str, matrix: Tensor, layer: LayerStatistics) -> Tensor:
    """Blocks ``[C, r, r]`` of the inverse, one of each channel of the layer.

    Where the channels are all that the layer reads, the inverse is never formed. Raises as
    :func:`inverse`.
    """
    variables = layer.variables
    if not _all(variables, len(matrix)):
        return own_blocks(inverse(function, matrix, layer), variables)
    if variables.shape[1] == 1:
        found = ops.precision_diagonal(matrix)
        _refuse(function, int(found.info), matrix, layer)
        return found.diagonal[:, None, None]
    blocks = ops.precision_blocks(matrix, variables.shape[1])
    _refuse(function, int(blocks.info), matrix, layer)
    return blocks.blocks


def _all(variables: Tensor, d: int) -> bool:
    """Whether they are all variables in their order."""
    return variables.numel() == d and torch.equal(variables.flatten(), torch.arange(d))


def _refuse(function: str, info: int, matrix: Tensor, layer: LayerStatistics) -> None:
    if info:
        raise ValueError(
            f"{function}: argument ridge: expected a positive definite covariance of layer "
            f"'{layer.name}' ({layer.moments.count:g} samples of {len(matrix)} variables), got one "
            f"whose leading minor {info} is not; raise ridge or the number of samples"
        )
