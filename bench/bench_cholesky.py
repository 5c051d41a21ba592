"""logdet, submatrix_logdet and cholesky against torch.linalg, NumPy and THOI."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice import ops

F32, F64 = torch.float32, torch.float64
TORCH, NUMPY, THOI = "torch.linalg.cholesky", "numpy.linalg", "thoi.nplets_measures"
SETS = 100_000


def matrices(batch: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """Wishart matrices of 2 d samples: condition numbers of some tens."""
    x = torch.randn(batch, d, 2 * d, dtype=F32 if dtype == F32 and d > 2000 else F64)
    return (x @ x.mT / (2 * d)).to(dtype)


def log_diagonal(a: torch.Tensor) -> torch.Tensor:
    return 2 * torch.linalg.cholesky(a).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def logdet_contest(batch: int, d: int, dtype: torch.dtype) -> Contest:
    a = matrices(batch, d, dtype)
    array = a.numpy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.logdet(a),
        TORCH: lambda: log_diagonal(a),
        NUMPY: lambda: np.linalg.slogdet(array)[1],
    }
    expected = torch.from_numpy(np.linalg.slogdet(a.double().numpy())[1])
    return Contest(entrants, expected, 1e-5 if dtype == F32 else 1e-12)


def factor_contest(batch: int, d: int, dtype: torch.dtype) -> Contest:
    a = matrices(batch, d, dtype)
    array = a.numpy()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.cholesky(a),
        TORCH: lambda: torch.linalg.cholesky(a),
        NUMPY: lambda: np.linalg.cholesky(array),
    }
    return Contest(entrants, torch.linalg.cholesky(a.double()), 1e-4 if dtype == F32 else 1e-12)


def submatrix_contest(k: int, dtype: torch.dtype) -> Contest:
    """Sets of k out of 512 variables. THOI gives total correlations, from which these follow."""
    x = torch.randn(512, 1024, dtype=torch.float64)
    cov = (x @ x.T / 1024).to(dtype)
    sets = torch.rand(SETS, 512).argsort(1)[:, :k].contiguous()
    some = sets[:10000]
    expected = torch.linalg.slogdet(cov.double()[sets[:, :, None], sets[:, None, :]])[1]

    def by_thoi() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = pytest.importorskip("thoi.measures.gaussian_copula")
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            measures = peer.nplets_measures(cov, some, covmat_precomputed=True, batch_size=1000)
        return cov.diagonal().log()[some].sum(-1) - 2 * measures[:, 0, 0]

    entrants: dict[str, Any] = {
        OURS: lambda: ops.submatrix_logdet(cov, sets),
        TORCH: lambda: log_diagonal(cov[sets[:, :, None], sets[:, None, :]]),
        THOI: Part(by_thoi, SETS / len(some), expected[: len(some)]),
    }
    return Contest(entrants, expected, 1e-5 if dtype == F32 else 1e-12)


def overhead_contest() -> Contest:
    a = matrices(1, 4, F32)[0]
    native = torch.ops.infoslice.logdet.default
    entrants: dict[str, Any] = {
        OURS: lambda: ops.logdet(a),
        "native torch operator": lambda: native(a),
        "torch.logdet": lambda: torch.logdet(a),
    }
    return Contest(entrants, torch.logdet(a.double()), 1e-5)


# batch, order, element type: how many times our time torch should take for logdet
GOALS = {
    (10000, 8, F32): 14, (4096, 16, F32): 14, (1024, 32, F32): 14, (512, 64, F32): 14,
    (128, 128, F32): None, (128, 256, F32): 5, (8, 1024, F32): 3.3, (1, 4096, F32): 1.7,
    (10000, 8, F64): 9, (4096, 16, F64): 9, (1024, 32, F64): 9, (512, 64, F64): 6,
    (128, 256, F64): 3.4, (8, 1024, F64): None,
}  # fmt: skip

if ops.build_info()["cpu_level"] == "x86-64-v3":
    GOALS |= {(batch, d, dtype): 10 for batch, d, dtype in GOALS if dtype == F32 and d <= 64}


def title(op: str, batch: int, d: int, dtype: torch.dtype) -> str:
    return f"{op} {batch} x [{d}, {d}] {str(dtype).removeprefix('torch.')}"


CASES = [
    Case(
        title("logdet", batch, d, dtype),
        (OURS, TORCH, NUMPY),
        partial(logdet_contest, batch, d, dtype),
        goals={TORCH: goal} if goal else {},
        flops=batch * d**3 / 3,
        bytes=batch * d * (d + 1) / 2 * dtype.itemsize,
        dtype=dtype,
    )
    for (batch, d, dtype), goal in GOALS.items()
]
CASES += [
    Case(
        title("cholesky", batch, d, dtype),
        (OURS, TORCH, NUMPY),
        partial(factor_contest, batch, d, dtype),
        flops=batch * d**3 / 3,
        bytes=batch * d * (1.5 * d + 0.5) * dtype.itemsize,
        dtype=dtype,
    )
    for batch, d, dtype in GOALS
    if d < 4096
]
CASES += [
    Case(
        f"submatrix_logdet {SETS} x [{k}, {k}] of [512, 512] {str(dtype).removeprefix('torch.')}",
        (OURS, TORCH, THOI),
        partial(submatrix_contest, k, dtype),
        goals={TORCH: 10, THOI: 10} if dtype == F32 else {},
        flops=SETS * k**3 / 3,
        bytes=SETS * (8 * k + dtype.itemsize * k * (k + 1) / 2),
        dtype=dtype,
    )
    for dtype in (F32, F64)
    for k in (8, 16)
]
CASES.append(
    Case(
        "what a call of logdet costs, [4, 4]",
        (OURS, "native torch operator", "torch.logdet"),
        overhead_contest,
    )
)

test_contests = tests_of(CASES)
