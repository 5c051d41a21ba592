"""Builds, tests, sanitizes and measures on a GPU, in under nine minutes and without a network:

    python -m bench.gpu --output FOLDER [--part build|tests|sanitize|bench] [--only TEXT]

Needs torch with CUDA, nvcc, cmake, ninja, pybind11 and pytest; compute-sanitizer for its part.
FOLDER gets gpu.md and gpu.json, renewed after every result, and logs. A part that fails or takes
too long is recorded, and the next one runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import gpu_report

ROOT = Path(__file__).resolve().parents[1]
# Seconds for each part. Bench comes last and may use what the others left.
LIMITS = {"build": 130.0, "tests": 130.0, "sanitize": 90.0, "bench": 250.0}
TOTAL = 515.0
TOOLS = ("memcheck", "racecheck", "initcheck")
TESTED = (
    "covariance", "cholesky", "precision", "gaussian_mi", "greedy", "slice_channels",
    "spanning_tree",
)  # fmt: skip
HUGE = ("covariance", "cholesky", "greedy", "slice_channels")
CMAKE = """
cmake -S . -B build/gpu -GNinja -DINFOSLICE_CUDA=ON -DPython_EXECUTABLE="$PYTHON" \
  -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)"
cmake --build build/gpu
cmake --install build/gpu --prefix python/infoslice
"""
GROUPS = ("matrices", "covariance", "slicing", "information", "greedy", "hopper")


@dataclass
class Task:
    """A command, where its output goes, and when it must end."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def run(tasks: list[Task], seconds: float) -> dict[str, tuple[int | None, float]]:
    """All at once; exit status (None: stopped when the time was over) and seconds of each."""
    start, found = time.monotonic(), {}
    running = {}
    for task in tasks:
        log = task.log.open("a", encoding="utf-8")
        log.write(f"$ {' '.join(task.command)}\n")
        log.flush()
        running[task.name] = (
            subprocess.Popen(
                task.command, cwd=ROOT, env=task.environment, stdout=log, stderr=log,
                start_new_session=True,
            ),
            log,
        )  # fmt: skip
    while running:
        late = time.monotonic() - start > seconds
        for name, (process, log) in list(running.items()):
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                found[name] = (None, time.monotonic() - start)
            else:
                found[name] = (process.returncode, time.monotonic() - start)
            log.close()
            del running[name]
        time.sleep(0.05)
    return found


def said(status: int | None) -> str:
    return "stopped: its time was over" if status is None else f"exit status {status}"


class Report:
    """The folder, and what is in it."""

    def __init__(self, folder: Path, only: str) -> None:
        self.folder, self.only, self.started = folder, only, time.monotonic()

    def left(self) -> float:
        return TOTAL - (time.monotonic() - self.started)

    def part(self, name: str, result: str, seconds: float, failures: Any = ()) -> None:
        state = gpu_report.load(self.folder)
        state["parts"][name] = {
            "result": result, "seconds": seconds, "failures": [list(f) for f in failures]
        }  # fmt: skip
        gpu_report.store(self.folder, state)
        print(f"=== {name}: {result} ({seconds:.0f} s)", flush=True)


def answer(*command: str) -> str:
    """What a command prints, or nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(command: str, commit: str) -> dict[str, str]:
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    gpus = answer("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    torch = answer(sys.executable, "-c", "import torch; print(torch.__version__)")
    nvcc = re.search(r"release ([\d.]+)", answer("nvcc", "--version"))
    commit = commit or answer("git", "describe", "--always", "--dirty", "--abbrev=12")
    return {
        "GPU": gpus.replace("\n", "; ") or "none",
        "host": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": f"Python {platform.python_version()}, torch {torch or 'none'}, "
        f"nvcc {nvcc.group(1) if nvcc else 'none'}",
        "commit": commit or "unknown",
        "command": f"`{command}`",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def build(report: Report, seconds: float) -> None:
    """In place, for this machine's GPU alone."""
    capability = answer("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    digits = capability.splitlines()[0].replace(".", "") if capability else "90"
    settings = environment(
        CUDAARCHS=f"{digits}-real",
        CMAKE_ARGS="-DINFOSLICE_CUDA=ON",
        CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count() or 1),
    )
    log, start, status = report.folder / "build.log", time.monotonic(), None
    # A setuptools too old to read pyproject.toml is no reason to go home: CMake does the work.
    for command in ([sys.executable, "setup.py", "build_ext", "--inplace"], ["bash", "-ec", CMAKE]):
        left = max(seconds - (time.monotonic() - start), 1.0)
        settings["PYTHON"] = sys.executable
        status = run([Task("build", command, log, settings)], left)["build"][0]
        if status == 0:
            break
    result = f"built for sm_{digits}" if status == 0 else f"FAILED, {said(status)}: build.log"
    report.part("build", result, time.monotonic() - start)


def tests(report: Report, seconds: float) -> None:
    """A process for each op, side by side: an invalid access takes only its own along.

    The tests of huge tensors come afterwards, alone, since they need most of the memory.
    """
    with tempfile.TemporaryDirectory() as made:
        folder, start = Path(made), time.monotonic()

        def task(name: str, file: str, words: str) -> Task:
            # Warnings of whichever torch there is are no failures of ours.
            options = [f"--junitxml={folder / name}.xml", "-p", "no:cacheprovider", "-W", "default"]
            command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", words, *options]
            return Task(name, [*command, f"tests/test_gpu_{file}.py"], folder / f"{name}.log",
                        environment(OMP_NUM_THREADS="1"))  # fmt: skip

        huge = "2_to_the"
        groups = [[task(op, op, f"not {huge}") for op in (*TESTED, "package", "statistics")]]
        groups += [[task(f"{op}_huge", op, huge)] for op in HUGE]
        groups += [[task("hopper", "hopper", "")]]
        counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
        for group in groups:
            # A kernel that hangs takes no more than its share.
            left = min(seconds - (time.monotonic() - start), 85.0 if len(group) > 1 else 40.0)
            found = run(group, max(left, 1.0))
            for name, (status, _) in found.items():
                failures += read_tests(folder / f"{name}.xml", counts)
                if status not in (0, 1):
                    failures.append((f"tests {name}", said(status)))
        logs = "".join(f"##### {p.stem}\n{tail(p)}\n" for p in sorted(folder.glob("*.log")))
    gpu_report.write(report.folder / "tests.log", logs)
    result = ", ".join(f"{count} {what}" for what, count in counts.items())
    good = not failures and counts["passed"] > 0
    report.part(
        "tests", result if good else f"FAILED: {result}", time.monotonic() - start, failures[:60]
    )


def tail(path: Path, most: int = 400_000) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-most:]


def read_tests(path: Path, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Adds up a JUnit file; the tests that failed, and why."""
    if not path.exists():
        return []
    failures = []
    for test in ElementTree.parse(path).getroot().iter("testcase"):
        wrong = [child for kind in ("failure", "error") for child in test.findall(kind)]
        if wrong:
            counts["failed"] += 1
            why = (wrong[0].get("message") or "").splitlines()
            failures.append((test.get("name", ""), why[0][:200] if why else ""))
        elif test.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return failures


def sanitize(report: Report, seconds: float) -> None:
    """The three tools side by side. Without torch's cache every tensor is an allocation."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        report.part("sanitize", "NOT RUN: there is no compute-sanitizer", 0.0)
        return
    calls = [sys.executable, "-m", "bench.gpu_calls", f"--seconds={max(seconds - 45, 5):.0f}"]
    logs = {tool: report.folder / f"{tool}.log" for tool in TOOLS}
    # torch asks CUDA some questions whose answer is an error.
    options = ["--report-api-errors=no", "--error-exitcode=9", "--print-limit=20"]
    found = run(
        [
            Task(tool, [program, f"--tool={tool}", *options, *calls], logs[tool],
                 environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS="1"))
            for tool in TOOLS
        ],
        seconds,
    )  # fmt: skip
    for tool, (status, took) in found.items():
        text = tail(logs[tool])
        gpu_report.write(logs[tool], text)
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
        reached = re.findall(r"^(all \d+ calls|time is over: .*)$", text, re.MULTILINE)
        result = ", ".join([*reached[-1:], *summary[-1:]]) or "no result"
        clean = status == 0 and bool(summary) and bool(reached)
        report.part(tool, result if clean else f"FAILED, {said(status)}: {result}", took)


def bench(report: Report, seconds: float) -> None:
    """A process for each group of cases, and for each at most two minutes."""
    state = gpu_report.load(report.folder)
    state["rows"] = []
    state.pop("roofs", None)
    gpu_report.store(report.folder, state)
    start, log = time.monotonic(), report.folder / "bench.log"
    wrong = []
    for group in GROUPS:
        command = [sys.executable, "-m", "bench.gpu_rows", group, str(report.folder)]
        task = Task(group, [*command, f"--only={report.only}"], log, environment())
        left = min(seconds - (time.monotonic() - start), 120.0)
        status, _ = run([task], max(left, 1.0))[group]
        if status != 0:
            wrong.append((f"bench {group}", said(status)))
    rows = gpu_report.load(report.folder)["rows"]
    verdicts = [row.get("verdict", "FAILED").partition(";")[0] for row in rows]
    kinds = {kind: verdicts.count(kind) for kind in ("met", "short", "beyond the floor", "FAILED")}
    result = f"{len(rows)} rows: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    result = result if rows and not wrong else f"FAILED: {result}"
    report.part("bench", result, time.monotonic() - start, wrong)
    print("\n".join(gpu_report.lines_of(gpu_report.load(report.folder))), flush=True)


PARTS = {"build": build, "tests": tests, "sanitize": sanitize, "bench": bench}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--part", action="append", choices=PARTS, help="this part; several times")
    parser.add_argument("--only", default="", help="benchmark cases whose title contains this")
    parser.add_argument("--commit", default="", help="to be told, where there is no git")
    options = parser.parse_args(arguments)
    folder: Path = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = options.part or list(PARTS)
    for log in folder.glob("*.log"):
        log.unlink()
    state = gpu_report.load(folder)
    state["machine"] = machine(" ".join(["python -m bench.gpu", *arguments]), options.commit)
    gpu_report.store(folder, state)
    report = Report(folder, options.only)
    for name in [part for part in PARTS if part in chosen]:
        # What later parts need at the least is left to them.
        kept = 100.0 if "bench" in chosen and name != "bench" else 0.0
        limit = report.left() if name == "bench" else min(LIMITS[name], report.left() - kept)
        try:
            PARTS[name](report, max(limit, 5.0))
        except Exception as error:  # the others run all the same
            report.part(name, f"FAILED: {type(error).__name__}: {error}", 0.0)
    parts = gpu_report.load(folder)["parts"]
    return 1 if any("FAILED" in part["result"] for part in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
