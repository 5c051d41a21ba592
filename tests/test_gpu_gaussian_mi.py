"""gaussian_mi, marginal_mi, conditional_mi and pairwise_mi on a GPU."""

from __future__ import annotations

import torch

from gpu_checks import F32, F64, Case, definite, gaps, gpu_tests

# Computed in double whatever the dtype; the reference takes differences of entropies.
BOUNDS = {F64: 1e-10, F32: 1e-6}
OPS = ("gaussian_mi", "marginal_mi", "conditional_mi", "pairwise_mi")


def case(op, title, make, dtype, failing=False, **keywords):
    if op == "gaussian_mi":
        keywords.pop("group_size", None)
    title = f"{title} {str(dtype).removeprefix('torch.')}"
    return Case(op, title, make, BOUNDS[dtype], keywords, against_reference=not failing)


def picked(*batch, nx, ny, dtype, rest=3):
    """The variables x from the end backwards, y every second of those before."""
    n = nx + 2 * ny + rest
    x, y = list(range(n - 1, n - 1 - nx, -1)), list(range(0, 2 * ny, 2))
    return lambda: [definite(*batch, d=n, dtype=dtype), x, y]


def with_a_constant(dtype):
    def make():
        cov = definite(3, d=12, dtype=dtype)
        cov[1, 2], cov[1, :, 2] = 0, 0
        cov[2, 9], cov[2, :, 9] = 0, 0
        return [cov, [0, 1, 2, 3, 4, 5], [8, 9, 10, 11]]

    return make


def failing(dtype):
    """Matrices with a repeated variable in x, in y, on both sides, indefinite, and NaN."""

    def make():
        cov = definite(6, d=12, dtype=dtype)
        for item, a, b in [(1, 0, 3), (2, 8, 10), (3, 1, 9)]:
            cov[item, b] = cov[item, a]
            cov[item, :, b] = cov[item, :, a]
            cov[item, b, b] = cov[item, a, a]
        cov[4] -= 5 * torch.eye(12, dtype=dtype)
        cov[5, 9, 4] = torch.nan
        return [cov, [0, 1, 2, 3, 4, 5], [8, 9, 10, 11]]

    return make


SIZES = [(1, 1, 1), (6, 2, 1), (12, 5, 3), (40, 1, 1), (33, 32, 1), (48, 20, 4)]
LARGE = [(130, 70, 1), (256, 40, 8), (300, 200, 1)]  # for which the reference takes too long
CASES = []
for dtype in (F64, F32):
    for op in OPS:
        CASES += [
            case(op, f"{nx} of x by {size}, {ny} of y", picked(2, nx=nx, ny=ny, dtype=dtype), dtype,
                 group_size=size, noise_variance=0.1)
            for nx, ny, size in SIZES
            if op != "conditional_mi" or size < nx or nx == 1
        ]  # fmt: skip
        CASES += [
            case(op, f"{nx} of x by {size}, {ny} of y", picked(2, nx=nx, ny=ny, dtype=dtype), dtype,
                 group_size=size, noise_variance=0.1, failing=True)
            for nx, ny, size in LARGE
        ]  # fmt: skip
        CASES += [
            case(op, "one matrix", picked(nx=7, ny=4, dtype=dtype), dtype),
            case(op, "[2, 3] matrices", picked(2, 3, nx=9, ny=4, dtype=dtype), dtype, group_size=3),
            case(op, "500 matrices", picked(500, nx=4, ny=3, dtype=dtype), dtype, group_size=2),
            case(op, "strides", lambda dtype=dtype: [gaps(definite(2, d=9, dtype=dtype)),
                 [0, 4, 5, 2], [1, 8]], dtype),
            case(op, "failures", failing(dtype), dtype, failing=True),
            case(op, "constants", with_a_constant(dtype), dtype, failing=True),
        ]  # fmt: skip

test_cases = gpu_tests(CASES)
