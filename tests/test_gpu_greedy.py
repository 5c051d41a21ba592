"""forward_selection, backward_elimination and obs_elimination on a GPU."""

from __future__ import annotations

import pytest
import torch

from gpu_checks import F32, F64, Case, definite, gaps, gpu_tests, need
from infoslice import ops


def case(op, title, make, dtype, failing=False, **keywords):
    # Computed in double whatever the dtype, and the values are double too.
    title = f"{title} {str(dtype).removeprefix('torch.')}"
    return Case(op, title, make, 1e-9, keywords, against_reference=not failing)


def forward(nx, ny, count, dtype, n=0, singular=False):
    def make():
        cov = definite(d=n or nx + ny + 2, dtype=dtype)
        if singular:  # a repeated and a constant variable
            cov[3], cov[:, 3] = cov[1], cov[:, 1]
            cov[3, 3] = cov[1, 1]
            cov[4], cov[:, 4] = 0, 0
        return [cov, list(range(nx)), list(range(nx, nx + ny)), count]

    return make


def layers(channels, sizes, count, dtype, bad=None):
    """Precision matrices of x, and of x given y (or Gram matrices: any definite ones do)."""

    def make():
        first = [definite(d=channels * r, dtype=dtype) for r in sizes]
        second = [a + 0.3 * definite(d=len(a), dtype=dtype) for a in first]
        if bad is not None:
            first[-1][-1, -1] = bad
        return [first, second, count]

    return make


CASES = []
for dtype in (F64, F32):
    CASES += [
        case("forward_selection", f"{count} of {nx} by {size}, {ny} of y",
             forward(nx, ny, count, dtype), dtype, group_size=size, noise_variance=0.1)
        for nx, ny, count, size in [
            (1, 1, 1, 1), (6, 2, 3, 1), (12, 3, 4, 3), (40, 0, 40, 1), (40, 9, 20, 1),
            (20, 0, 5, 2), (64, 33, 10, 4),
        ]
    ]  # fmt: skip
    CASES += [
        case("forward_selection", "none", forward(5, 2, 0, dtype), dtype),
        case("forward_selection", "with a start", forward(20, 4, 6, dtype), dtype, start=[7, 2]),
        case("forward_selection", "redundant variables", forward(8, 3, 8, dtype, singular=True),
             dtype, failing=True, noise_variance=0.1),
        case("forward_selection", "redundant, no y", forward(8, 0, 8, dtype, singular=True), dtype,
             failing=True),
        case("forward_selection", "strides", lambda dtype=dtype: [gaps(definite(d=11, dtype=dtype)),
             [0, 9, 3, 4], [1, 2], 4], dtype),
    ]  # fmt: skip
    for op in ("backward_elimination", "obs_elimination"):
        CASES += [
            case(op, f"{count} of {channels} by {sizes}", layers(channels, sizes, count, dtype),
                 dtype, group_size=sizes)
            for channels, count, sizes in [
                (1, 1, [1]), (7, 7, [1]), (40, 25, [1]), (12, 6, [1, 3]), (9, 5, [4]),
                (10, 10, [2, 1, 1]),
            ]
        ]  # fmt: skip
        CASES += [
            case(op, "keep", layers(20, [2], 9, dtype), dtype, group_size=2, keep=[3, 4, 19]),
            case(op, "indefinite", layers(8, [1], 8, dtype, bad=-1.0), dtype, failing=True),
            case(op, "NaN", layers(8, [2, 1], 8, dtype, bad=torch.nan), dtype, failing=True,
                 group_size=[2, 1]),
        ]  # fmt: skip

# What no reference can afford: more than one block of 64 eliminations.
LARGE = [
    case(op, "300 of 400", layers(400, [1], 300, dtype), dtype, failing=True)
    for op in ("backward_elimination", "obs_elimination")
    for dtype in (F64, F32)
]
LARGE += [
    case("forward_selection", "200 of 300", forward(300, 70, 200, dtype), dtype, failing=True,
         noise_variance=0.1)
    for dtype in (F64, F32)
]  # fmt: skip

test_cases = gpu_tests(CASES)
test_large_cases = gpu_tests(LARGE)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    n, some = 46400, 4
    assert n * n > 2**31
    need(5 * n * n * 4)
    scale = torch.linspace(1, 2, n, device="cuda")[torch.randperm(n, device="cuda")]
    cov = torch.zeros(n, n, device="cuda")
    cov.diagonal().copy_(scale)
    order, gains, info = ops.forward_selection(cov, range(n), [], some)
    largest = scale.double().sort(descending=True, stable=True)
    assert info == 0
    assert torch.equal(scale[order], largest.values[:some].float())
    torch.testing.assert_close(gains, largest.values[:some].log() / 2)
