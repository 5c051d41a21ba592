"""MINT on one layer of 128 x 128 channel groups: python -m bench.mint_layer [--output FILE].

2500 samples (ten classes of 250), 512 parent and 512 child channels: 16384 estimates, each of 1667
points. Beside it what the released code does for one estimate, its loop over pairs of points for a
few rows of them; the hours of the layer are extrapolated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from bench.compare import machine
from infoslice.criteria.mint import group_scores

GROUPS, CHANNELS, SAMPLES = 128, 512, 2500
POINTS = SAMPLES - SAMPLES // 3
ROWS = 20  # of the plain loop over pairs


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds of the process, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a random layer behind a rank-deficient, class-dependent input."""
    torch.manual_seed(0)
    hidden = torch.randn(SAMPLES, 64, dtype=torch.float64)
    parent = torch.tanh(hidden @ torch.randn(64, CHANNELS, dtype=torch.float64) / 4)
    parent += 0.1 * torch.randn(SAMPLES, CHANNELS, dtype=torch.float64)
    child = parent @ torch.randn(CHANNELS, CHANNELS, dtype=torch.float64) / CHANNELS**0.5
    return parent, child


def plain_distances(points: np.ndarray, rows: int) -> None:
    """Distances as the released code fills them in: one norm for every pair."""
    distances = np.zeros([rows, len(points)])
    for i in range(rows):
        for j in range(len(points)):
            distances[i, j] = np.linalg.norm(points[i] - points[j])


def tree(points: np.ndarray) -> None:
    minimum_spanning_tree(csr_matrix(cdist(points, points)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parent, child = activations()
    cpu, wall, scores = timed(lambda: group_scores(parent, child, GROUPS, GROUPS))
    whole = GROUPS**2
    points = np.hstack([parent.numpy(), child.numpy()[:, :4]])[:POINTS]
    pairs, _, _ = timed(lambda: plain_distances(points, ROWS))
    pairs *= POINTS / ROWS
    both, _, _ = timed(lambda: tree(points))
    distances, _, _ = timed(lambda: cdist(points, points))
    plain = pairs + both - distances
    lines = [
        "# MINT, one layer of 128 x 128 groups",
        "",
        *machine(f"python -m bench.mint_layer --threads {arguments.threads} --output FILE"),
        "",
        f"{SAMPLES} samples of {CHANNELS} parent and {CHANNELS} child channels: {whole} estimates, "
        f"each the minimal spanning tree of {POINTS} points in {CHANNELS + 4} dimensions, float64.",
        "",
        "| | one estimate, CPU | the layer, CPU | the layer, wall |",
        "|---|---|---|---|",
        f"| `group_scores`, corrected | {cpu / whole * 1e3:.2f} ms | {cpu:.0f} s | {wall:.0f} s |",
        f"| `cdist` and SciPy's tree for every estimate | {both * 1e3:.0f} ms | "
        f"{both * whole / 3600:.1f} h, extrapolated | |",
        f"| as released: a Python loop over pairs of points | {plain:.1f} s | "
        f"{plain * whole / 3600:.0f} h, extrapolated | |",
        "",
        f"The loop over pairs was run for {ROWS} of {POINTS} rows. Scores of this layer: "
        f"{scores.min():.3f} to {scores.max():.3f}, mean {scores.mean():.3f}.",
    ]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
