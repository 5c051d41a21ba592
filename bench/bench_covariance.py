"""covariance against torch.cov, NumPy and scikit-learn on the same data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.contest import OURS, Case, Contest, tests_of
from infoslice import ops, reference

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TORCH, NUMPY, SKLEARN = "torch.cov", "numpy.cov", "sklearn.empirical_covariance"
UNFOLD = "F.unfold and torch.cov"


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """What torch.cov wants: channels first, at least float32."""
    x = x if x.dtype == F64 else x.float()
    return x.movedim(1, 0).reshape(x.shape[1], -1)


def contest(shape: tuple[int, ...], dtype: torch.dtype, names: tuple[str, ...]) -> Contest:
    from sklearn.covariance import empirical_covariance

    x = torch.randn(shape).to(dtype)
    n = x.numel() // x.shape[1]
    expected = reference.covariance(x, channel_dim=1).covariance
    entrants: dict[str, Any] = {
        OURS: lambda: ops.covariance(x, channel_dim=1),
        TORCH: lambda: torch.cov(as_rows(x)),
        NUMPY: lambda: np.cov(as_rows(x).numpy()),
        SKLEARN: lambda: empirical_covariance(as_rows(x).T.numpy()) * (n / (n - 1)),
    }
    return Contest({name: entrants[name] for name in names}, expected, bound_of(dtype))


def bound_of(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == F64 else 2e-6


def far_from_zero_contest(dtype: torch.dtype) -> Contest:
    """Means of 100 standard deviations, where one pass without a shift loses all digits."""
    x = (torch.randn(16000, 256) + 100).to(dtype)
    expected = reference.covariance(x).covariance
    entrants: dict[str, Any] = {
        OURS: lambda: ops.covariance(x),
        TORCH: lambda: torch.cov(x.float().T),
    }
    return Contest(entrants, expected, 2e-6)


def patch_contest(images: int, channels: int, size: int) -> Contest:
    x = torch.randn(images, channels, size, size)
    entrants: dict[str, Any] = {
        OURS: lambda: ops.patch_covariance(x, 3, padding=1),
        UNFOLD: lambda: torch.cov(
            F.unfold(x, 3, padding=1).movedim(1, 0).reshape(9 * channels, -1)
        ),
    }
    return Contest(entrants, reference.patch_covariance(x, 3, padding=1).covariance, 2e-6)


def cross_contest() -> Contest:
    x, y = torch.randn(16000, 256), torch.randn(16000, 64)
    entrants: dict[str, Any] = {
        OURS: lambda: ops.cross_covariance(x, y),
        "torch, centred": lambda: (x - x.mean(0)).T @ (y - y.mean(0)) / (len(x) - 1),
    }
    # Independent channels: the entries themselves are of the order of 1 / sqrt(n).
    return Contest(entrants, reference.cross_covariance(x, y).covariance, 1e-3)


def overhead_contest() -> Contest:
    x = torch.randn(8, 4)
    array = x.numpy()
    leaf = x.clone().requires_grad_()
    entrants: dict[str, Any] = {
        OURS: lambda: ops.covariance(x),
        "bare native call": lambda: ops._native.core.covariance(array, -1, 0, 1, None),
        "infoslice, numpy": lambda: ops.covariance(array),
        "infoslice, with gradient": lambda: ops.covariance(leaf),
        TORCH: lambda: torch.cov(x.T),
    }
    return Contest(entrants, reference.covariance(x).covariance, 2e-6)


def case(
    shape: tuple[int, ...], dtype: torch.dtype, goal: float, names: tuple[str, ...] = ()
) -> Case:
    size, channels = float(np.prod(shape)), shape[1]
    names = (OURS, TORCH, *names)
    return Case(
        f"covariance {list(shape)} {str(dtype).removeprefix('torch.')}",
        names,
        partial(contest, shape, dtype, names),
        goals={TORCH: goal} if goal else {},
        flops=size * (channels + 1),
        bytes=size * dtype.itemsize,
        dtype=F64 if dtype == F64 else F32,
    )


CASES = [
    case((32, 64, 56, 56), BF16, 3.3),
    case((64, 256, 28, 28), BF16, 4),
    case((32, 64, 56, 56), F16, 0),
    case((32, 64, 56, 56), F32, 2.9),
    case((64, 256, 28, 28), F32, 3),
    case((64, 512, 14, 14), F32, 2.1),
    case((64, 1024, 7, 7), F32, 1.6),
    case((100000, 64), BF16, 3),
    case((16000, 256), BF16, 2.4),
    case((8000, 1024), BF16, 1.7),
    case((100000, 64), F32, 2.2, (NUMPY, SKLEARN)),
    case((16000, 256), F32, 2.2, (NUMPY, SKLEARN)),
    case((8000, 1024), F32, 1.7, (NUMPY, SKLEARN)),
    case((2000, 4096), F32, 1.7),
    case((16000, 256), F64, 0, (NUMPY, SKLEARN)),
    Case(
        "patch_covariance [64, 64, 28, 28] 3x3 float32",
        (OURS, UNFOLD),
        partial(patch_contest, 64, 64, 28),
        goals={UNFOLD: 3},
        flops=64 * 28 * 28 * 576 * 577,
        bytes=4 * 64 * 64 * 28 * 28,
    ),
    Case(
        "cross_covariance [16000, 256] x [16000, 64] float32",
        (OURS, "torch, centred"),
        cross_contest,
        flops=2 * 16000 * 256 * 64,
        bytes=4 * 16000 * 320,
    ),
    *(
        Case(
            f"covariance at mean/std 100 [16000, 256] {str(dtype).removeprefix('torch.')}",
            (OURS, TORCH),
            partial(far_from_zero_contest, dtype),
            flops=16000 * 256 * 257,
            bytes=16000 * 256 * dtype.itemsize,
        )
        for dtype in (F32, BF16, F16)
    ),
    Case(
        "covariance [8, 4] float32: what a call costs",
        (OURS, "bare native call", "infoslice, numpy", "infoslice, with gradient", TORCH),
        overhead_contest,
    ),
]

test_contests = tests_of(CASES)
