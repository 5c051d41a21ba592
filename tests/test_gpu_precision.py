"""precision_diagonal and precision_blocks on a GPU."""

from __future__ import annotations

import torch

from gpu_checks import F32, F64, Case, definite, gaps, gpu_tests

# Computed in double whatever the dtype.
BOUNDS = {F64: 1e-11, F32: 1e-6}


def case(op, title, make, dtype, failing=False):
    title = f"{title} {str(dtype).removeprefix('torch.')}"
    return Case(op, title, make, BOUNDS[dtype], against_reference=not failing)


def diagonals(*batch, d, dtype):
    return lambda: [definite(*batch, d=d, dtype=dtype)]


def blocks(*batch, d, size, dtype):
    return lambda: [definite(*batch, d=d, dtype=dtype), size]


def failing(d, size, dtype):
    def make():
        a = definite(5, d=d, dtype=dtype)
        a[1, 0, 0] = -1
        a[2, d // 2, d // 2] = torch.nan
        a[3, d - 1, 0] = torch.inf
        return [a] if size is None else [a, size]

    return make


CASES = []
for dtype in (F64, F32):
    one, many = "precision_diagonal", "precision_blocks"
    CASES += [
        case(one, f"[3, {d}, {d}]", diagonals(3, d=d, dtype=dtype), dtype)
        for d in (1, 2, 7, 16, 31, 32, 33, 64, 100, 200, 257)
    ]
    CASES += [
        case(one, "[2, 3, 20, 20]", diagonals(2, 3, d=20, dtype=dtype), dtype),
        case(one, "[1000, 9, 9]", diagonals(1000, d=9, dtype=dtype), dtype),
        case(one, "none", lambda dtype=dtype: [torch.empty(0, 5, 5, dtype=dtype)], dtype),
        case(one, "strides", lambda dtype=dtype: [gaps(definite(2, d=9, dtype=dtype))], dtype),
    ]
    CASES += [
        case(many, f"{size} of {d}", blocks(3, d=d, size=size, dtype=dtype), dtype)
        for d, size in [(6, 1), (6, 2), (6, 6), (36, 9), (99, 33), (200, 40), (320, 64)]
    ]
    CASES += [
        case(one, f"failures of order {d}", failing(d, None, dtype), dtype, failing=True)
        for d in (4, 32, 33, 90, 250)
    ]
    CASES += [
        case(many, f"failures of order {d}", failing(d, d // 2, dtype), dtype, failing=True)
        for d in (4, 32, 90)
    ]

test_cases = gpu_tests(CASES)
