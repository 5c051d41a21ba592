"""precision_diagonal and precision_blocks against whole inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoslice import ops, reference

SHAPES = [(256, 32), (64, 128), (8, 512), (1, 1024)]


def matrices(batch: int, d: int) -> torch.Tensor:
    x = torch.randn(batch, d, 2 * d, dtype=torch.float64)
    return x @ x.mT / (2 * d)


@pytest.mark.parametrize(("batch", "d"), SHAPES)
@pytest.mark.parametrize("name", ["infoslice", "torch.cholesky_inverse", "numpy.linalg.inv"])
def test_precision_diagonal(race, batch, d, name):
    a = matrices(batch, d)
    functions = {
        "infoslice": lambda: ops.precision_diagonal(a),
        "torch.cholesky_inverse": lambda: torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal(
            dim1=-2, dim2=-1
        ),
        "numpy.linalg.inv": lambda: np.linalg.inv(a.numpy()).diagonal(axis1=-2, axis2=-1).copy(),
    }
    race(
        f"precision_diagonal {batch} x [{d}, {d}] float64",
        name,
        functions[name],
        reference.precision_diagonal(a).diagonal,
        bound=1e-11,
        flops=batch * 2 * d**3 / 3,
    )


@pytest.mark.parametrize(("d", "block_size"), [(288, 9), (1024, 16)])
@pytest.mark.parametrize("name", ["infoslice", "torch.cholesky_inverse"])
def test_precision_blocks(race, d, block_size, name):
    a = matrices(1, d)[0]

    def whole() -> torch.Tensor:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(a))
        tiles = inverse.unflatten(1, (-1, block_size)).unflatten(0, (-1, block_size))
        return tiles.diagonal(dim1=0, dim2=2).movedim(-1, 0)

    functions = {
        "infoslice": lambda: ops.precision_blocks(a, block_size),
        "torch.cholesky_inverse": whole,
    }
    race(
        f"precision_blocks [{d}, {d}] in {block_size}s float64",
        name,
        functions[name],
        reference.precision_blocks(a, block_size).blocks,
        bound=1e-11,
        flops=2 * d**3 / 3 + d**2 * block_size,
    )
