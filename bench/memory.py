"""Peak memory of every op above its result: python -m bench.memory [--output FILE].

Anonymous memory of the process, read every half millisecond while the op runs on one thread. A
mapped file is not among it: the kernel may drop those pages at any time.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.compare import machine
from infoslice import ops

MB = 2**20


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024


def peak_above(run: Callable[[], Any]) -> tuple[int, Any]:
    """The peak while ``run`` runs, above what was there before, and what it returned."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that was kept would be taken again unseen
    before, peak, running = anonymous(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous() - before)
            time.sleep(5e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run()
    finally:
        running = False
        watcher.join()
    return peak, result


def size_of(result: Any) -> int:
    if isinstance(result, tuple | list):
        return sum(size_of(part) for part in result)
    return int(getattr(result, "nbytes", 0))


def spd(*batch: int, d: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(*batch, d, d, dtype=dtype)
    return a @ a.mT / d + torch.eye(d, dtype=dtype)


def mapped(folder: str, gigabytes: int, channels: int) -> np.ndarray[Any, Any]:
    """A float32 file of so many GB; its blocks repeat, so that it is written quickly."""
    path = Path(folder) / "samples"
    block = np.random.default_rng(0).standard_normal((64 * MB // 4,), dtype=np.float32)
    with path.open("wb") as file:
        for _ in range(gigabytes * 16):
            file.write(block.tobytes())
    return np.memmap(path, dtype=np.float32, mode="r").reshape(-1, channels)


def cases(folder: str, gigabytes: int) -> dict[str, Callable[[], Any]]:
    """The input of each case is made when it is asked for, and dropped before the next."""
    half = torch.arange(0, 8192, 2)

    def slicing() -> Any:
        weight = torch.randn(8192, 4096)
        return lambda: ops.slice_channels([weight], [(0,)], [(half,)])

    def with_input(
        op: Callable[..., Any], make: Callable[[], Any], *rest: Any, **named: Any
    ) -> Any:
        def prepare() -> Any:
            x = make()
            return lambda: op(x, *rest, **named)

        return prepare

    x, y = list(range(2048)), list(range(2048, 2058))
    return {
        f"covariance of {gigabytes} GB float32, memory-mapped, 256 channels": with_input(
            ops.covariance, lambda: mapped(folder, gigabytes, 256)
        ),
        "covariance [4096, 4096] float32": with_input(
            ops.covariance, lambda: torch.randn(4096, 4096)
        ),
        "covariance [64, 256, 56, 56] bfloat16": with_input(
            ops.covariance, lambda: torch.randn(64, 256, 56, 56).bfloat16(), channel_dim=1
        ),
        "patch_covariance [64, 64, 56, 56] 3x3 float32": with_input(
            ops.patch_covariance, lambda: torch.randn(64, 64, 56, 56), 3, padding=1
        ),
        "logdet 100000 x [16, 16] float32": with_input(
            ops.logdet, lambda: spd(100000, d=16, dtype=torch.float32)
        ),
        "logdet [4096, 4096] float32": with_input(
            ops.logdet, lambda: spd(d=4096, dtype=torch.float32)
        ),
        "precision_diagonal [2048, 2048] float64": with_input(
            ops.precision_diagonal, lambda: spd(d=2048)
        ),
        "conditional_mi of 2048 channels, 10 outputs": with_input(
            ops.conditional_mi, lambda: spd(d=2058), x, y
        ),
        "slice_channels [8192, 4096] float32, axis 0": slicing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--gigabytes", type=int, default=4, help="of the memory-mapped input")
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [*machine("python -m bench.memory"), ""]
    lines += ["| case | result | peak above it |", "|---|---|---|"]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for title, prepare in cases(folder, options.gigabytes).items():
            run = prepare()
            peak, result = peak_above(run)
            size = size_of(result)
            lines.append(f"| {title} | {size / MB:.1f} MB | {max(0, peak - size) / MB:.1f} MB |")
            print(lines[-1], flush=True)
            del run, result
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
