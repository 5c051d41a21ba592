"""precision_diagonal and precision_blocks against whole inverses."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from bench.contest import OURS, Case, Contest, tests_of
from infoslice import ops, reference

TORCH, NUMPY = "torch.cholesky_inverse", "numpy.linalg.inv"


def matrices(batch: int, d: int) -> torch.Tensor:
    x = torch.randn(batch, d, 2 * d, dtype=torch.float64)
    return x @ x.mT / (2 * d)


def inverse(a: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(a))


def diagonal_contest(batch: int, d: int) -> Contest:
    a = matrices(batch, d)
    entrants: dict[str, Any] = {
        OURS: lambda: ops.precision_diagonal(a),
        TORCH: lambda: inverse(a).diagonal(dim1=-2, dim2=-1),
        NUMPY: lambda: np.linalg.inv(a.numpy()).diagonal(axis1=-2, axis2=-1).copy(),
    }
    return Contest(entrants, reference.precision_diagonal(a).diagonal, 1e-11)


def blocks_contest(d: int, size: int) -> Contest:
    a = matrices(1, d)[0]

    def whole() -> torch.Tensor:
        tiles = inverse(a).unflatten(1, (-1, size)).unflatten(0, (-1, size))
        return tiles.diagonal(dim1=0, dim2=2).movedim(-1, 0)

    entrants: dict[str, Any] = {OURS: lambda: ops.precision_blocks(a, size), TORCH: whole}
    return Contest(entrants, reference.precision_blocks(a, size).blocks, 1e-11)


CASES = [
    Case(
        f"precision_diagonal {batch} x [{d}, {d}] float64",
        (OURS, TORCH, NUMPY),
        partial(diagonal_contest, batch, d),
        flops=batch * 2 * d**3 / 3,
        bytes=batch * 4.0 * d * (d + 1),
        dtype=torch.float64,
    )
    for batch, d in [(256, 32), (64, 128), (8, 512), (1, 1024)]
]
CASES += [
    Case(
        f"precision_blocks [{d}, {d}] in {size}s float64",
        (OURS, TORCH),
        partial(blocks_contest, d, size),
        flops=2 * d**3 / 3 + d**2 * size,
        bytes=4.0 * d * (d + 1),
        dtype=torch.float64,
    )
    for d, size in [(288, 9), (1024, 16)]
]

test_contests = tests_of(CASES)
