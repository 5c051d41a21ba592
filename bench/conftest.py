"""One thread, process CPU time, every result checked, ratios at the end. See bench/README.md."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench.contest import OURS, Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # CPU time of this process: on a busy machine it varies by 5 % where wall time doubles.
    for item in items:
        item.add_marker(
            pytest.mark.benchmark(
                timer=time.process_time,
                min_rounds=7,
                max_time=0.5,
                warmup=True,
                warmup_iterations=1,
            )
        )


@pytest.fixture
def race(benchmark: Any) -> Callable[[Case, str], None]:
    """Check one entrant of a case, then measure it."""

    def run(case: Case, name: str) -> None:
        torch.manual_seed(20260713)
        contest = case.make()
        assert list(contest.entrants) == list(case.names)
        benchmark.group = case.title
        benchmark.extra_info.update(
            implementation=name,
            error=contest.error(name),
            times=contest.times(name),
            flops=case.flops,
            bytes=case.bytes,
        )
        before = contest.before(name)
        if before:
            benchmark.pedantic(contest.run(name), setup=before, rounds=15, warmup_rounds=1)
        else:
            benchmark(contest.run(name))

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Each entrant's median, and how many times ours it takes."""
    session = getattr(config, "_benchmarksession", None)
    cases: dict[str, dict[str, Any]] = {}
    for bench in session.benchmarks if session else []:
        if bench and "implementation" in bench.extra_info:
            cases.setdefault(bench.group, {})[bench.extra_info["implementation"]] = bench
    if not cases:
        return
    terminalreporter.section("CPU time of one thread, and the multiple of ours")
    for case, entrants in cases.items():
        terminalreporter.write_line(case)
        ours = entrants[OURS].stats.median if OURS in entrants else None
        for name, bench in entrants.items():
            info = bench.extra_info
            median = bench.stats.median * info["times"]
            ratio = f"{median / ours:6.2f}x" if ours else ""
            rates = "".join(
                f"  {info[key] / median / 1e9:7.1f} {unit}"
                for key, unit in (("flops", "GFLOP/s"), ("bytes", "GB/s"))
                if info[key]
            )
            terminalreporter.write_line(
                f"  {name:28s} {median * 1e3:10.4f} ms {ratio}{rates}  error {info['error']:.1e}"
            )
