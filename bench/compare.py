"""Every goal in one run, one row each: python -m bench.compare [--only TEXT] [--output FILE].

One thread, process CPU time, entrants in turn round after round, medians. The floor of a case is
what this machine needs for the arithmetic, at the rate of its best matrix product, or for moving
the bytes, at that of a copy of as many: the larger of the two.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from bench.contest import OURS, Case, Contest, Run

MODULES = ("covariance", "cholesky", "gaussian_mi", "greedy", "slice_channels")


class Stopwatch:
    """Process CPU seconds of a run; ``before``, if any, is called before each and not counted."""

    def __init__(self, run: Run, before: Run | None = None, least: float = 0.002) -> None:
        self.run, self.before = run, before
        self.repeats = 1  # what is shorter than ``least`` seconds is repeated within a round
        self()
        self.took = self()
        if before is None:
            self.repeats += int(least / max(self.took, 1e-6))

    def __call__(self) -> float:
        if self.before:
            self.before()
        start = time.process_time()
        for _ in range(self.repeats):
            self.run()
        return (time.process_time() - start) / self.repeats


def cpu_seconds(watches: dict[str, Stopwatch], rounds: int) -> dict[str, float]:
    """Medians over the rounds; one round must do where a run takes more than 5 seconds."""
    if max(watch.took for watch in watches.values()) > 5:
        rounds = 1
    seconds: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(rounds):
        for name, watch in watches.items():
            seconds[name].append(watch())
    return {name: median(values) for name, values in seconds.items()}


def copy_seconds(size: float) -> float:
    """What reading and writing so many bytes takes: a copy of half as many."""
    source = np.ones(max(int(size) // 2, 1), dtype=np.uint8)
    target = np.empty_like(source)
    return cpu_seconds({"copy": Stopwatch(lambda: np.copyto(target, source))}, 5)["copy"]


@dataclass
class Roofs:
    """FLOP/s of the best matrix product at hand, by element type."""

    rates: dict[torch.dtype, float]

    @classmethod
    def measure(cls, n: int = 1500) -> Roofs:
        rates = {}
        for dtype in (torch.float32, torch.float64):
            a = torch.randn(n, n, dtype=dtype)
            array, other = a.numpy(), a.clone().numpy()
            products = {"torch": Stopwatch(partial(torch.mm, a, a))}
            products["numpy"] = Stopwatch(partial(np.matmul, array, other))
            times = cpu_seconds(products, 5)
            rates[dtype] = 2 * n**3 / min(times.values())
        return cls(rates)

    def floor(self, case: Case) -> float:
        moving = copy_seconds(case.bytes) if case.bytes else 0.0
        return max(case.flops / self.rates[case.dtype], moving)


def rows_of(case: Case, contest: Contest, roofs: Roofs, rounds: int) -> list[str]:
    names = [n for n in contest.entrants if n == OURS or n in case.goals or n == case.floor]
    errors = {}
    for name in names:
        # Peers that are not installed are left out.
        with contextlib.suppress(pytest.skip.Exception):
            errors[name] = contest.error(name)
    watches = {name: Stopwatch(contest.run(name), contest.before(name)) for name in errors}
    seconds = cpu_seconds(watches, rounds)
    floor = max(roofs.floor(case), seconds[case.floor] if case.floor else 0.0)
    rows = []
    for name, goal in case.goals.items():
        if name not in errors:
            rows.append(f"| {case.title} | {name} | {goal:g}x | not installed | | | | |")
            continue
        peer = seconds[name] * contest.times(name)
        reached = peer / seconds[OURS]
        most = peer / floor if floor else float("inf")
        verdict = "met" if reached >= goal else "short" if most >= goal else "beyond the floor"
        rows.append(
            f"| {case.title} | {name} | {goal:g}x | **{reached:.3g}x** | {most:.3g}x "
            f"| {seconds[OURS] * 1e3:.4g} ms | {errors[OURS]:.0e} | {verdict} |"
        )
    return rows


def threads_row(case: Case, contest: Contest, rounds: int) -> str:
    """Ours on one thread and on two: wall time in turns, and whether all bits are the same."""
    run, before = contest.run(OURS), contest.before(OURS) or (lambda: None)
    results: dict[int, Any] = {}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    repeats = 1
    for _ in range(rounds):
        for threads, times in seconds.items():
            torch.set_num_threads(threads)
            before()
            start = time.perf_counter()
            for _ in range(repeats):
                result = run()
            times.append((time.perf_counter() - start) / repeats)
            if threads not in results:
                results[threads] = copy.deepcopy(result)
        if seconds[1][-1] > 5:
            break  # one round must do
        if not contest.before(OURS):
            repeats = max(repeats, 1 + int(0.002 / max(seconds[1][-1], 1e-6)))
    torch.set_num_threads(1)
    one, two = median(seconds[1]), median(seconds[2])
    same = "the same" if same_bits(results[1], results[2]) else "DIFFERENT"
    return f"| {case.title} | {one * 1e3:.4g} ms | {two * 1e3:.4g} ms | {one / two:.2f}x | {same} |"


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return all(map(same_bits, a, b))
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def machine(command: str) -> list[str]:
    """What a kept run must tell: machine, versions, commit and command."""
    import scipy

    from infoslice import ops

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    info = ops.build_info()
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return [
        f"- machine: {models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"kernels for {info['cpu_level']}",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}, NumPy "
        f"{np.__version__}, SciPy {scipy.__version__}, {info['compiler']}",
        f"- commit: {commit}",
        f"- command: `{command}`",
    ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose title contains this text")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, help="write the table here too")
    parser.add_argument(
        "--threads", action="store_true", help="ours on two threads against one, in wall time"
    )
    options = parser.parse_args(arguments)
    from threadpoolctl import threadpool_limits

    # All libraries are loaded before their threads are limited.
    modules = [importlib.import_module(f"bench.bench_{word}") for word in MODULES]
    torch.set_num_threads(1)
    with threadpool_limits(1):
        lines: list[str] = []

        def tell(line: str) -> None:
            print(line, flush=True)
            lines.append(line)

        roofs = Roofs.measure()
        for line in machine(" ".join(["python -m bench.compare", *arguments])):
            tell(line)
        rates = [
            f"{rate / 1e9:.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
            for dtype, rate in roofs.rates.items()
        ]
        tell(
            f"- roofs: matrix product {' and '.join(rates)}, copy of 256 MB "
            f"{2**29 / copy_seconds(2**29) / 1e9:.0f} GB/s"
        )
        tell("")
        if options.threads:
            tell("| case | 1 thread | 2 threads | ratio | bits |")
            tell("|---|---|---|---|---|")
        else:
            tell("| case | against | goal | reached | at the floor | ours | error | verdict |")
            tell("|---|---|---|---|---|---|---|---|")
        for module in modules:
            for case in module.CASES:
                if case.goals and options.only in case.title:
                    torch.manual_seed(20260713)
                    contest = case.make()
                    if options.threads:
                        tell(threads_row(case, contest, options.rounds))
                        continue
                    for row in rows_of(case, contest, roofs, options.rounds):
                        tell(row)
    if options.output:
        unfinished = options.output.with_suffix(".partial")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
