"""spanning_tree on a GPU."""

from __future__ import annotations

import torch

from gpu_checks import F32, F64, Case, gaps, gpu_tests

# Squared distances are computed in the dtype.
BOUNDS = {F64: 1e-14, F32: 1e-6}


def trees(*batch, n, d, dtype, with_base=False):
    def make():
        points = torch.randn(*batch, n, d, dtype=dtype)
        other = torch.randn(n, 5, dtype=F64)
        base = (other[:, None] - other).square().sum(-1).to(dtype)
        return [points, base] if with_base else [points]

    return make


def failing(dtype):
    def make():
        points = torch.randn(3, 40, 2, dtype=dtype)
        points[1, 20, 1] = torch.nan
        points[2, 0, 0] = torch.inf
        return [points]

    return make


def case(title, make, dtype):
    title = f"{title} {str(dtype).removeprefix('torch.')}"
    return Case("spanning_tree", title, make, BOUNDS[dtype])


CASES = []
for dtype in (F64, F32):
    CASES += [
        case(f"[2, {n}, {d}]", trees(2, n=n, d=d, dtype=dtype), dtype)
        for n, d in [(1, 2), (2, 1), (33, 3), (257, 2), (500, 7)]
    ]
    CASES += [
        case("with base", trees(3, n=300, d=2, dtype=dtype, with_base=True), dtype),
        case("base alone", trees(n=70, d=0, dtype=dtype, with_base=True), dtype),
        case("batches", trees(2, 3, n=20, d=2, dtype=dtype), dtype),
        case("strides", lambda dtype=dtype: [gaps(torch.randn(2, 30, 3, dtype=dtype))], dtype),
        case("failures", failing(dtype), dtype),
    ]

test_cases = gpu_tests(CASES)
