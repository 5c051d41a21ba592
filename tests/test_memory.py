"""Memory stays bounded where the input does not fit."""

from __future__ import annotations

import numpy as np
import torch

from bench.memory import MB, anonymous, peak_above
from infoslice import ops


def test_a_mapped_file_is_read_in_place(tmp_path):
    """256 MB of samples, of which nothing but chunks is ever in memory of ours."""
    path = tmp_path / "samples"
    with path.open("wb") as file:
        file.truncate(256 * MB)
    samples = np.memmap(path, dtype=np.float32, mode="r+").reshape(-1, 64)
    samples[::1000] = 1.0
    peak, result = peak_above(lambda: ops.covariance(samples))
    share = -(-len(samples) // 1000) / len(samples)
    assert np.allclose(result.mean, share)
    assert np.allclose(result.covariance, share * (1 - share), rtol=1e-3)
    assert peak < 16 * MB


def test_memory_is_given_back():
    x = torch.randn(4096, 512)
    ops.covariance(x)
    before = anonymous()
    for _ in range(20):
        ops.covariance(x)
        ops.logdet(torch.eye(512).expand(4, 512, 512))
    assert anonymous() - before < 16 * MB
