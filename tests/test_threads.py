"""Results do not depend on the number of threads, and no number of them hangs.

Sizes are such that the work is shared out (a millisecond or more).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from infoslice import ops


def spd(*batch: int, d: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(*batch, d, d, dtype=dtype)
    return a @ a.mT / d + torch.eye(d, dtype=dtype)


def calls() -> dict[str, Any]:
    x = torch.randn(40000, 96)
    images = torch.randn(16, 48, 30, 30)
    float32 = torch.float32
    inputs, outputs = list(range(180)), list(range(180, 190))
    points = torch.randn(7, 600, 3)
    weights = [torch.randn(1500, 1500) for _ in range(3)]
    keep = torch.arange(0, 1500, 2)
    batch = spd(12, d=190)
    return {
        "covariance": lambda: ops.covariance(x),
        "covariance, tiles shared": lambda: ops.covariance(x.view(-1, 768)),
        "covariance, NCHW bfloat16": lambda: ops.covariance(images.bfloat16(), channel_dim=1),
        "cross_covariance": lambda: ops.cross_covariance(x, x[:, :33] + 1),
        "patch_covariance": lambda: ops.patch_covariance(images, 3, padding=1),
        "logdet of small ones": lambda: ops.logdet(spd_small),
        "logdet of large ones": lambda: ops.logdet(batch),
        "logdet of one": lambda: ops.logdet(one),
        "cholesky": lambda: ops.cholesky(batch.to(float32)),
        "precision_blocks": lambda: ops.precision_blocks(batch, 19),
        "conditional_mi": lambda: ops.conditional_mi(batch, inputs, outputs),
        "marginal_mi": lambda: ops.marginal_mi(batch, inputs, outputs, noise_variance=1.0),
        "pairwise_mi": lambda: ops.pairwise_mi(batch, inputs, outputs, noise_variance=1.0),
        "spanning_tree": lambda: ops.spanning_tree(points),
        "slice_channels": lambda: ops.slice_channels(weights, [(0, 1)] * 3, [(keep, keep)] * 3),
    }


spd_small = spd(5000, d=24, dtype=torch.float32)
one = spd(d=700)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", calls())
def test_every_number_of_threads_gives_the_same_bits(threads, name):
    torch.manual_seed(3)
    call = calls()[name]
    threads(1)
    alone = call()
    for count in (2, 3, 8):
        threads(count)
        for part, of_one in zip(call(), alone, strict=True):
            assert torch.equal(part, of_one), count


def test_large_batches_do_not_hang():
    """torch.logdet hangs or errs here: batches of order 150 and more on two threads or more."""
    script = """
import torch
from infoslice import ops
torch.manual_seed(0)
a = torch.randn(64, 200, 200)
a = a @ a.mT / 200 + torch.eye(200)
torch.set_num_threads(1)
expected = ops.logdet(a).logdet
for threads in (2, 3, 4, 8):
    torch.set_num_threads(threads)
    for _ in range(10):
        assert torch.equal(ops.logdet(a).logdet, expected)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
