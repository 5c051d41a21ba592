"""spanning_tree against SciPy's minimum_spanning_tree and plain Prim in NumPy and torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice import ops

SCIPY, NUMPY, TORCH = "cdist + scipy minimum_spanning_tree", "Prim in numpy", "Prim in torch"
TREES = 8  # of a call; the others make one


def prim_numpy(squared: np.ndarray) -> torch.Tensor:
    nearest, total = squared[0].copy(), 0.0
    nearest[0] = np.inf
    outside = np.ones(len(squared), dtype=bool)
    outside[0] = False
    for _ in range(len(squared) - 1):
        gained = nearest.argmin()
        total += nearest[gained]
        outside[gained] = False
        np.minimum(nearest, squared[gained], out=nearest, where=outside)
        nearest[gained] = np.inf
    return torch.tensor(total)


def prim_torch(squared: torch.Tensor) -> torch.Tensor:
    nearest, total = squared[0].clone(), squared.new_zeros(())
    closed = torch.zeros_like(nearest)
    closed[0] = torch.inf
    for _ in range(len(squared) - 1):
        gained = (nearest + closed).argmin()
        total += nearest[gained]
        closed[gained] = torch.inf
        nearest = torch.minimum(nearest, squared[gained])
    return total


def contest(n: int, d: int, dtype: torch.dtype) -> Contest:
    points = torch.randn(TREES, n, d, dtype=torch.float64)
    other = torch.randn(n, 20, dtype=torch.float64)
    base = torch.from_numpy(cdist(other, other, "sqeuclidean"))
    x = points[0].numpy()
    typed = points.to(dtype), base.to(dtype)

    def squared() -> np.ndarray:
        return cdist(x, x, "sqeuclidean") + base.numpy()

    def scipy() -> torch.Tensor:
        return torch.tensor(minimum_spanning_tree(squared()).sum())

    one = scipy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.spanning_tree(*typed),
        SCIPY: Part(scipy, TREES, one),
        NUMPY: Part(lambda: prim_numpy(squared()), TREES, one),
        TORCH: Part(lambda: prim_torch(torch.from_numpy(squared())), TREES, one),
    }
    whole = [cdist(p, p, "sqeuclidean") + base.numpy() for p in points]
    totals = [minimum_spanning_tree(distances).sum() for distances in whole]

    def read(result: Any) -> torch.Tensor:
        if not isinstance(result, tuple):
            return torch.as_tensor(result)
        return result[1].double().sum(-1)

    return Contest(entrants, torch.tensor(totals), 1e-12 if dtype == torch.float64 else 1e-5, read)


CASES = [
    Case(
        f"spanning_tree {TREES} x [{n}, {d}] with base {str(dtype).removeprefix('torch.')}",
        (OURS, SCIPY, NUMPY, TORCH),
        partial(contest, n, d, dtype),
        flops=TREES * n * n * (3.0 * d + 2),
        bytes=TREES * n * n * float(dtype.itemsize),
        dtype=dtype,
    )
    for n, d, dtype in [
        (1111, 4, torch.float64),
        (1111, 4, torch.float32),
        (1667, 4, torch.float64),
    ]
]

test_contests = tests_of(CASES)
