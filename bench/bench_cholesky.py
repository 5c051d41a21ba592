"""logdet and cholesky of batches against torch.linalg and NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from infoslice import ops

if TYPE_CHECKING:
    from collections.abc import Callable

F32, F64 = torch.float32, torch.float64
SHAPES = [
    (10000, 8, F32),
    (4096, 16, F32),
    (1024, 32, F32),
    (512, 64, F32),
    (128, 128, F32),
    (128, 256, F32),
    (8, 1024, F32),
    (4096, 16, F64),
    (1024, 32, F64),
    (512, 64, F64),
    (128, 256, F64),
]


def matrices(batch: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """Wishart matrices of 2 d samples: condition numbers of some tens."""
    x = torch.randn(batch, d, 2 * d, dtype=torch.float64)
    return (x @ x.mT / (2 * d)).to(dtype)


def title(op: str, batch: int, d: int, dtype: torch.dtype) -> str:
    return f"{op} {batch} x [{d}, {d}] {str(dtype).removeprefix('torch.')}"


def logdets(a: torch.Tensor) -> dict[str, Callable[[], Any]]:
    array = a.numpy()
    return {
        "infoslice": lambda: ops.logdet(a),
        "torch.linalg.cholesky, log": lambda: (
            2 * torch.linalg.cholesky(a).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        ),
        "numpy.linalg.slogdet": lambda: np.linalg.slogdet(array)[1],
    }


def factors(a: torch.Tensor) -> dict[str, Callable[[], Any]]:
    array = a.numpy()
    return {
        "infoslice": lambda: ops.cholesky(a),
        "torch.linalg.cholesky": lambda: torch.linalg.cholesky(a),
        "numpy.linalg.cholesky": lambda: np.linalg.cholesky(array),
    }


@pytest.mark.parametrize(("batch", "d", "dtype"), SHAPES)
@pytest.mark.parametrize(
    "name", ["infoslice", "torch.linalg.cholesky, log", "numpy.linalg.slogdet"]
)
def test_logdet(race, batch, d, dtype, name):
    a = matrices(batch, d, dtype)
    race(
        title("logdet", batch, d, dtype),
        name,
        logdets(a)[name],
        torch.from_numpy(np.linalg.slogdet(a.double().numpy())[1]),
        bound=1e-5 if dtype == F32 else 1e-12,
        flops=batch * d**3 / 3,
        bytes=a.nbytes,
    )


@pytest.mark.parametrize(("batch", "d", "dtype"), SHAPES)
@pytest.mark.parametrize("name", ["infoslice", "torch.linalg.cholesky", "numpy.linalg.cholesky"])
def test_cholesky(race, batch, d, dtype, name):
    a = matrices(batch, d, dtype)
    race(
        title("cholesky", batch, d, dtype),
        name,
        factors(a)[name],
        torch.linalg.cholesky(a.double()),
        bound=1e-4 if dtype == F32 else 1e-12,
        flops=batch * d**3 / 3,
        bytes=2 * a.nbytes,
    )


@pytest.mark.parametrize("name", ["infoslice", "native torch operator", "torch.logdet"])
def test_what_a_call_costs(race, name):
    a = matrices(1, 4, F32)[0]
    native = torch.ops.infoslice.logdet.default
    functions = {
        "infoslice": lambda: ops.logdet(a),
        "native torch operator": lambda: native(a),
        "torch.logdet": lambda: torch.logdet(a),
    }
    expected = torch.logdet(a.double())
    race("what a call of logdet costs, [4, 4]", name, functions[name], expected, bound=1e-5)
