"""Measures the cases of one group, a row for each peer: a process of its own of bench/gpu.py.

Times are medians of device events, the entrants in turns; "in a graph" is ours replayed from a CUDA
graph, without the time between launches, where it can be captured. Rates are of the faster of the
two, and the floor is what the arithmetic takes at the rate of the largest matrix product in the
case's dtype, or the bytes at that of a copy, whichever is longer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from bench import gpu_report
from bench.contest import OURS, Case, Contest
from bench.gpu_cases import COPY, GROUPS, Place, Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contest import Run


def timed(run: Run, before: Run | None, times: int) -> list[float]:
    """Seconds of each run by device events, or, without a device, by the clock."""
    if not torch.cuda.is_available():
        found = []
        for _ in range(times):
            if before:
                before()
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
        return found
    pairs = []
    for _ in range(times):
        if before:
            before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def in_turns(runs: dict[str, tuple[Run, Run | None]], budget: float) -> dict[str, float]:
    """Medians over three turns; each entrant gets so many seconds, but one run at least."""
    times, found = {}, {}
    for name, (run, before) in runs.items():
        timed(run, before, 1)  # loads code, fills the allocator
        once = timed(run, before, 1)[0]
        if once < budget / 3:
            once = median(timed(run, before, 3))
        times[name] = max(1, min(100, int(budget / 3 / max(once, 1e-6))))
        found[name] = [once] if 3 * once > budget else []
    for _ in range(3):
        for name, (run, before) in runs.items():
            if len(found[name]) != 1 or times[name] > 1:
                found[name] += timed(run, before, times[name])
    return {name: median(values) for name, values in found.items()}


def graph_seconds(run: Run, budget: float) -> float | None:
    """Seconds of a run in a graph of several; None where it cannot be captured."""
    if not torch.cuda.is_available():
        return None
    count = len(run.inputs) if isinstance(run, Rotation) else 1
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run() for _ in range(count)]
    found = in_turns({OURS: (graph.replay, None)}, budget)[OURS] / count
    del kept, graph
    return found


def measured_roofs(device: str, tiny: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), FLOP per second of matrix products."""
    size = 1 << (20 if tiny else 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    roofs = {"copy": 2 * size / in_turns({"": (lambda: target.copy_(source), None)}, 0.3)[""]}
    for dtype, n in ((torch.bfloat16, 8192), (torch.float32, 8192), (torch.float64, 4096)):
        n = 64 if tiny else n
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product: Callable[[], Any] = lambda a=a, b=b: a @ b  # noqa: E731
        name = str(dtype).removeprefix("torch.")
        roofs[name] = 2 * n**3 / in_turns({"": (product, None)}, 0.5)[""]
    return roofs


def told(roofs: dict[str, float]) -> dict[str, str]:
    units = {"copy": (1e9, "GB/s")}
    parts = {}
    for name, rate in roofs.items():
        scale, unit = units.get(name, (1e12, "TFLOP/s"))
        parts[name if name == "copy" else f"{name} matrix product"] = f"{rate / scale:.4g} {unit}"
    return parts


def verdict(reached: bool, possible: bool) -> str:
    return "met" if reached else "short" if possible else "beyond the floor"


def rows_of(
    case: Case, contest: Contest, roofs: dict[str, float], budget: float
) -> list[dict[str, Any]]:
    """Every entrant is checked, measured and compared."""
    errors: dict[str, float | None] = {name: contest.error(name) for name in contest.entrants}
    errors[COPY] = None
    runs = {name: (contest.run(name), contest.before(name)) for name in contest.entrants}
    seconds = in_turns(runs, budget)
    ours = seconds[OURS]
    note = ""
    try:
        graph = graph_seconds(contest.run(OURS), budget) if ours < 1 else None
    except RuntimeError as error:
        graph, note = None, f"; no graph: {str(error).splitlines()[0][:80]}"
    best = min(ours, graph or ours)
    rate = roofs[str(case.dtype).removeprefix("torch.")]
    floor = max(case.flops / rate, case.bytes / roofs["copy"])
    common = {
        "case": case.title,
        "seconds": ours,
        "graph_seconds": graph,
        "gigabytes_per_second": case.bytes / best / 1e9,
        "teraflops": case.flops / best / 1e12,
        "floor_seconds": floor,
        "of_the_floor": floor / best,
        "error": errors[OURS],
    }
    rows = []
    for name in contest.entrants:
        if name == OURS:
            continue
        peer, goal = seconds[name] * contest.times(name), case.goals.get(name)
        ratio = peer / ours
        said = "" if goal is None else verdict(ratio >= goal, peer / floor >= goal)
        row = {"peer": name, "goal": goal, "ratio": ratio, "peer_seconds": peer}
        rows.append({**common, **row, "peer_error": errors[name], "verdict": said + note})
    if case.within:
        limit = verdict(ours <= case.within, floor <= case.within)
        row = {"peer": "a limit", "goal": f"{case.within:g} s", "ratio": None}
        rows.append({**common, **row, "verdict": limit})
    return rows


def measure(group: str, place: Place, folder: Path, only: str = "", budget: float = 0.3) -> None:
    """Adds the rows of a group to what is in the folder. A case that fails is a row too."""
    torch.backends.cuda.matmul.allow_tf32 = False
    state = gpu_report.load(folder)
    if "roofs" not in state:
        state["roofs"] = measured_roofs(place.device, place.tiny)
        state["ceilings"] = told(state["roofs"])
        gpu_report.store(folder, state)
    for case in GROUPS[group](place):
        if only not in case.title:
            continue
        torch.manual_seed(20260713)
        try:
            contest = case.make()
            assert list(contest.entrants) == list(case.names)
            rows = rows_of(case, contest, state["roofs"], budget)
        except Exception as error:  # the next case may still run
            rows = [{"case": case.title, "failed": f"{type(error).__name__}: {str(error)[:300]}"}]
        contest = None  # its memory is wanted
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state["rows"] += rows
        gpu_report.store(folder, state)
        for row in rows:
            print(gpu_report.line_of(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_rows", description=__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    measure(options.group, Place(), options.folder, options.only)
