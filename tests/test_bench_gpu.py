"""bench/gpu.py where there is no GPU: every case in small on the CPU, the table, and the parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu, gpu_calls, gpu_report, gpu_rows
from bench.contest import OURS
from bench.gpu_cases import GROUPS, Place
from gpu_checks import Machine

ROOT = Path(__file__).parents[1]
TINY = Place(device="cpu", tiny=True)
CASES = [pytest.param(case, id=f"{group}-{i}") for group, make in GROUPS.items()
         for i, case in enumerate(make(TINY))]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_entrant_of_every_case_is_right(case):
    contest = case.make()
    assert list(contest.entrants) == list(case.names)
    assert set(case.goals) < set(case.names)
    for name in case.names:
        contest.error(name)


def test_the_cases_in_full_are_made_of_the_same_tasks():
    for make in GROUPS.values():
        full, tiny = make(Place()), make(TINY)
        assert [case.names for case in full] == [case.names for case in tiny]
        assert all(case.bytes > 0 for case in full)
        assert all(any(case.flops for case in make(Place())) for make in list(GROUPS.values())[:4])


def test_rows_are_written_as_they_come(tmp_path, capsys):
    for group in GROUPS:
        gpu_rows.measure(group, TINY, tmp_path, budget=1e-4)
    state = json.loads((tmp_path / "gpu.json").read_text())
    assert not [row for row in state["rows"] if "failed" in row]
    cases = [case for make in GROUPS.values() for case in make(TINY)]
    assert {row["case"] for row in state["rows"]} == {case.title for case in cases}
    goals = sum(len(case.goals) + bool(case.within) for case in cases)
    assert sum(bool(row["verdict"]) for row in state["rows"]) == goals == 22
    table = (tmp_path / "gpu.md").read_text().splitlines()
    columns = gpu_report.HEADER.count("|")
    rows = [line for line in table if line.startswith("|")][2:]
    assert {line.count("|") for line in rows} == {columns}
    assert len(rows) == len(state["rows"]) + 2
    assert "ceiling, copy: " in "\n".join(table)
    assert capsys.readouterr().out.count("\n") == len(state["rows"])
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md"}


def test_a_case_that_fails_is_a_row(tmp_path, monkeypatch):
    (case,) = GROUPS["greedy"](TINY)
    contest = case.make()
    monkeypatch.setitem(contest.entrants, OURS, lambda: contest.expected * 2)
    broken = [type(case)(case.title, case.names, lambda: contest, case.goals, dtype=case.dtype)]
    monkeypatch.setitem(gpu_rows.GROUPS, "greedy", lambda place: broken)
    gpu_rows.measure("greedy", TINY, tmp_path)
    (row,) = gpu_report.load(tmp_path)["rows"]
    assert "error" in row["failed"]
    assert "FAILED: AssertionError" in (tmp_path / "gpu.md").read_text()


def test_the_calls_for_the_sanitizers(capsys):
    cases = gpu_calls.calls()
    assert 100 < len(cases) < 400
    assert len({case.op for case in cases[:18]}) == 18
    gpu_calls.main(Machine(), seconds=1)
    assert "calls" in capsys.readouterr().out


def test_parts_that_fail_or_take_too_long_are_recorded(tmp_path, monkeypatch, capsys):
    def breaks(report, seconds):
        raise OSError("no room")

    def hangs(report, seconds):
        log = report.folder / "log.log"
        task = gpu.Task("a", [sys.executable, "-c", "import time; time.sleep(60)"], log,
                        gpu.environment())  # fmt: skip
        ((status, took),) = gpu.run([task], 0.2).values()
        report.part("tests", gpu.said(status), took, [("one", "why")])

    monkeypatch.setattr(gpu, "PARTS", {"build": breaks, "tests": hangs})
    assert gpu.main(["--output", str(tmp_path / "new")]) == 1
    parts = gpu_report.load(tmp_path / "new")["parts"]
    assert parts["build"]["result"] == "FAILED: OSError: no room"
    assert parts["tests"]["result"] == "stopped: its time was over"
    text = (tmp_path / "new" / "gpu.md").read_text()
    assert "- `one`: why" in text
    assert "- command: `python -m bench.gpu --output" in text
    assert "=== build: FAILED" in capsys.readouterr().out


def test_tests_are_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='so')\ndef test_skipped(): pass\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--junitxml=out.xml", "test_some.py"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    ((name, why),) = gpu.read_tests(tmp_path / "out.xml", counts)
    assert (name, counts) == ("test_bad", {"passed": 1, "failed": 1, "skipped": 1})
    assert "assert 1 == 2" in why


def test_every_file_of_tests_is_run():
    files = {path.stem.removeprefix("test_gpu_") for path in (ROOT / "tests").glob("test_gpu_*.py")}
    assert files == {*gpu.TESTED, "package", "statistics", "hopper"}
    assert set(gpu.GROUPS) == set(GROUPS)


def test_the_page_of_results_has_every_goal_and_no_figure():
    page = (ROOT / "bench/results/gpu.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][1:]
    wanted = []
    for case in (case for make in GROUPS.values() for case in make(Place())):
        goals = [f"{goal:g}x" for goal in case.goals.values()]
        goals += [f"{case.within:g} s"] if case.within else []
        wanted += [(case.title, goal) for goal in goals]
    assert sorted((row[0].strip(), row[2].strip()) for row in rows) == sorted(wanted)
    assert all(cell.strip() == "" for row in rows for cell in row[4:])
