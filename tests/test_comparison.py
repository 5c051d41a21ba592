"""Comparisons: everything crossed, failures shown, stopped and continued, the same again."""

from __future__ import annotations

import csv
import importlib
import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from infoslice import cli, comparison, criteria
from infoslice.comparison import Method, Task, compare, compare_methods, runner
from infoslice.comparison.results import UNPRUNED, Results, Row, summarise
from infoslice.comparison.task import read_ratio, split
from infoslice.perturbation import noise


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


def make_task(**changes) -> Task:
    model = network()
    probe = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        goal = model(probe)
    task = Task(
        "tiny",
        model,
        torch.zeros(1, 1, 6, 6),
        lambda m: {"agreement": 1 / (1 + (m(probe) - goal).square().mean().item())},
        {"white": "gaussian", "real": probe.flip(2) + 1},
        options={"samples": 16},
    )
    return replace(task, **changes)


def small(task: Task, **changes) -> list[Row]:
    choices = {"criteria": ["causal", "random"], "ratios": [0.25, 0.5], "seeds": 2}
    return compare(task, **{**choices, "show_progress": False, **changes})


def without_times(rows):
    return [replace(row, seconds=0.0, latency=0.0) for row in rows]


def test_everything_is_crossed():
    rows = small(make_task())
    assert rows[0].method == Method(UNPRUNED)
    assert rows[0].metrics == {"agreement": 1.0}
    keys = {row.key for row in rows[1:]}
    assert len(keys) == len(rows) - 1
    crossed = {
        (Method("causal", how, "global", source), ratio, seed)
        for how, ratio, (source, seed) in itertools.product(
            ("none", "sequential"), ("0.25", "0.5"), [("white", 0), ("white", 1), ("real", 0)]
        )
    }
    assert {key for key in keys if key[0].criterion == "causal"} == crossed
    # Drawn scores: every seed counts, and without compensation the inputs are not looked at.
    assert {key for key in keys if key[0].criterion == "random"} == {
        (Method("random", how, "global", source), ratio, seed)
        for ratio, seed, (how, source) in itertools.product(
            ("0.25", "0.5"), (0, 1),
            [("none", "none"), ("sequential", "white"), ("sequential", "real")],
        )
    }  # fmt: skip
    whole = rows[0].parameters
    assert not any(row.error for row in rows)
    assert all(0 < row.metrics["agreement"] < 1 for row in rows[1:])
    assert all(0 < row.parameters < whole and row.macs < rows[0].macs for row in rows[1:])


def test_rows_are_those_of_single_calls():
    """Shared inputs and remembered scores change nothing."""
    task = make_task()
    together = small(task)
    for row in together[1:]:
        source = "white" if row.method.source == "none" else row.method.source
        alone = compare_methods(
            task,
            [replace(row.method, source=source)],
            ratios=[float(row.ratio)],
            seeds=[row.seed],
            show_progress=False,
        )
        assert without_times(alone[1:]) == without_times([row])


def test_inputs_and_scores_are_made_once(monkeypatch):
    fits, scored = [], []

    def counted(model, example, name, *, samples, seed, **_):
        fits.append(name)
        return noise(example, samples, seed=seed)

    def counting(statistics, weights):
        scored.append(statistics.name)
        return criteria.causal(statistics, weights)

    monkeypatch.setattr(runner, "perturb", counted)
    task = make_task(sources={"matched": "matched"})
    rows = small(task, criteria=["l2_norm", counting], seeds=3)
    assert fits == ["matched"] * 3
    assert len(scored) == 3 * 2  # seeds, groups: not ratios and compensations
    assert {row.method.criterion for row in rows} == {UNPRUNED, "l2_norm", "counting"}


def test_equal_arguments_give_equal_rows():
    assert without_times(small(make_task())) == without_times(small(make_task()))


def test_uniform_widths_are_scored_on_what_is_left():
    scored = []

    def counting(statistics, weights):
        scored.append(statistics.name)
        return criteria.causal(statistics, weights)

    small(make_task(), criteria=[counting], allocations=["uniform"], sources=["real"])
    assert len(scored) == 2 * 2 * 2  # ratios, compensations, groups


def test_a_failure_is_a_row_and_shown(tmp_path):
    def broken(statistics, weights):
        raise RuntimeError("no\nluck")

    task = make_task()
    rows = small(task, criteria=[broken, "l1_norm"], sources=["real"], output=tmp_path)
    failed = [row for row in rows if row.error]
    assert len(failed) == 4
    assert all(row.error == "RuntimeError: no luck" and not row.metrics for row in failed)
    assert sum(row.method.criterion == "l1_norm" and bool(row.metrics) for row in rows) == 4
    page = (tmp_path / "compare-tiny.md").read_text()
    for shown in (comparison.text(rows), page):
        assert shown.count("RuntimeError: no luck") == 4
        assert "0 + 1 failed" in shown
    assert math.isnan(summarise(failed)[0].parameters)
    # What failed is tried anew, in the place of the old row.
    mended = small(
        task, criteria=[lambda s, w: criteria.causal(s, w)], sources=["real"], output=tmp_path
    )
    assert not any(row.error for row in mended)

    def fixed(statistics, weights):
        return criteria.causal(statistics, weights)

    fixed.__name__ = "broken"
    small(task, criteria=[fixed], sources=["real"], output=tmp_path)
    assert "failed" not in (tmp_path / "compare-tiny.md").read_text()


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = small(make_task())
    done = []
    prune = runner.prune

    def stopping(*arguments, **options):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(options)
        return prune(*arguments, **options)

    monkeypatch.setattr(runner, "prune", stopping)
    with pytest.raises(KeyboardInterrupt):
        small(make_task(), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["compare-tiny.csv"]
    lines = (tmp_path / "compare-tiny.csv").read_text().splitlines()
    assert sum(not line.startswith("#") for line in lines) == 1 + 1 + 5
    counted = []
    monkeypatch.setattr(runner, "prune", lambda *a, **k: (counted.append(k), prune(*a, **k))[1])
    again = small(make_task(), output=tmp_path)
    assert len(counted) == len(whole) - 1 - 5
    assert without_times(again) == without_times(whole)
    counted.clear()
    assert small(make_task(), output=tmp_path) == again  # read back from the file
    assert not counted


def test_the_file_can_be_read_by_others(tmp_path):
    rows = small(make_task(), output=tmp_path, command="infoslice compare tiny.py")
    lines = (tmp_path / "compare-tiny.csv").read_text().splitlines()
    titles = [line.partition(":")[0] for line in lines if line.startswith("# ")]
    assert titles == ["# task", "# versions", "# machine", "# commit", "# command"]
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(table) == len(rows)
    assert float(table[0]["agreement"]) == 1.0
    assert "infoslice compare tiny.py" in (tmp_path / "compare-tiny.md").read_text()
    for command, seeds in (("infoslice compare tiny.py --seeds 3", 3), ("nothing new", 3)):
        small(make_task(), output=tmp_path, command=command, seeds=seeds)
    said = "# command: infoslice compare tiny.py; infoslice compare tiny.py --seeds 3\n"
    assert said in (tmp_path / "compare-tiny.csv").read_text()


def test_other_tasks_and_versions_are_not_mixed_in(tmp_path, monkeypatch):
    task = make_task()
    small(task, criteria=["l1_norm"], output=tmp_path)
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    for changed in (
        replace(task, model=other),
        replace(task, options={"samples": 17}),
        replace(task, sources={**task.sources, "real": torch.zeros(24, 1, 6, 6)}),
    ):
        with pytest.raises(ValueError, match="to be of task tiny"):
            small(changed, criteria=["l1_norm"], output=tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.1")
    with pytest.raises(ValueError, match="to be of versions"):
        small(task, criteria=["l1_norm"], output=tmp_path)


def test_means_and_deviations_over_the_seeds():
    rows = [
        Row(Method("random"), "0.5", seed, {"accuracy": value}, 10 * seed, 1, 0.1, 0.2)
        for seed, value in enumerate((0.5, 0.75, 0.25, 0.9))
    ]
    rows.append(Row(Method("random"), "0.5", 4, error="no"))
    (found,) = summarise(rows)
    assert found.runs == 4
    assert found.errors == ("no",)
    assert found.mean["accuracy"] == pytest.approx(0.6)
    assert found.deviation["accuracy"] == pytest.approx(statistics.stdev([0.5, 0.75, 0.25, 0.9]))
    assert found.parameters == 15
    assert math.isnan(summarise(rows[:1])[0].deviation["accuracy"])


def test_the_best_comes_first():
    dense = Row(Method(UNPRUNED), "0.0", 0, {"loss": 1.0}, 9, 9, 0.1)
    rows = [
        Row(Method(name), "0.5", 0, {"loss": loss}, 5, 5, 0.1, 0.1)
        for name, loss in (("middle", 3.0), ("worst", 9.0), ("best", 2.0), ("broken", math.nan))
    ]

    def order(lower):
        lines = comparison.text([dense, *rows], lower).splitlines()
        return [line.split()[0] for line in lines[4:]]

    assert order(["loss"]) == [UNPRUNED, "best", "middle", "worst", "broken"]
    assert order([]) == [UNPRUNED, "worst", "middle", "best", "broken"]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = small(make_task(), output=tmp_path)
    assert (tmp_path / "compare-tiny.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".png"]
    assert not comparison.plot(tmp_path / "empty.png", rows[:1])


def test_a_function_draws_inputs_for_every_seed():
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed))

    rows = small(make_task(sources={"drawn": draw}), criteria=["causal"], seeds=[4, 7])
    assert drawn == [4, 7]
    assert {row.seed for row in rows[1:]} == {4, 7}


def test_budgets_and_options():
    rows = small(
        make_task(),
        criteria=["causal:score=marginal,noise_variance=2.0"],
        ratios=[{"macs": "60%"}],
        sources=["real"],
        compensations=["none"],
    )
    assert rows[1].ratio == "macs=60%"
    assert rows[1].macs <= 0.6 * rows[0].macs
    assert rows[1].method.criterion == "causal:score=marginal,noise_variance=2.0"


def test_refinements_are_crossed():
    rows = small(
        make_task(), criteria=["random"], sources=["real"], refinements=["none", "swaps"], seeds=1
    )
    assert not any(row.error for row in rows)
    refined = {row.key: row.metrics for row in rows[1:] if row.method.refinement == "swaps"}
    assert len(refined) == 4
    assert {key[0].source for key in refined} == {"real"}  # swaps look at the inputs
    plain = [row for row in rows[1:] if row.method.refinement == "none"]
    assert all(row.metrics not in refined.values() for row in plain)


def test_reading_the_command():
    assert split("causal:score=marginal,greedy=False,flap") == [
        "causal:score=marginal,greedy=False", "flap",
    ]  # fmt: skip
    assert split("0.25,macs=60%") == ["0.25", "macs=60%"]
    assert read_ratio("macs=60% parameters=5000") == {"macs": "60%", "parameters": 5000.0}
    with pytest.raises(ValueError, match="expected numbers or budgets"):
        read_ratio("half")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"criteria": ["casual"]}, "argument criteria"),
        ({"criteria": ["causal:scores=marginal"]}, "argument criteria"),
        ({"compensations": ["magic"]}, "argument compensations"),
        ({"allocations": ["fair"]}, "argument allocations"),
        ({"sources": ["dreams"]}, "argument sources"),
        ({"refinements": ["polish"]}, "argument refinements"),
        ({"ratios": [1.5]}, "argument ratios"),
        ({"seeds": 0}, "at least one method, one ratio and one seed"),
    ],
)
def test_wrong_choices_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        small(make_task(), **changes)


def test_metrics_cannot_take_the_names_of_columns():
    with pytest.raises(ValueError, match="argument task"):
        small(make_task(evaluate=lambda model: {"seconds": 1.0}))


def test_unwritten_results_leave_no_file(tmp_path):
    Results(tmp_path / "a.csv", {}, ())
    assert not list(tmp_path.iterdir())


TASK = """
import torch
from torch import nn
from infoslice.comparison import Task

def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    return Task("command", model, torch.zeros(1, 4), lambda m: float(m(torch.ones(1, 4)).sum()))

def nothing():
    return None
"""


def test_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_task.py").write_text(TASK)
    path, out = str(tmp_path / "my_task.py"), tmp_path / "out"
    call = ["compare", path, "--criteria", "causal:score=marginal,l2_norm", "--ratios", "0.5",
            "--compensations", "none", "--output", str(out)]  # fmt: skip
    assert cli.main(call) == 0
    printed = capsys.readouterr().out
    for word in (UNPRUNED, "causal:score=marginal", "l2_norm", "accuracy", "compare-command.csv"):
        assert word in printed
    assert "--criteria causal:score=marginal,l2_norm" in (out / "compare-command.csv").read_text()
    for wrong, said in (
        ([f"{path}:nothing"], "expected my_task.py:nothing to return"),
        ([f"{path}:absent"], "no such function"),
        (["absent.py"], "expected a Python file"),
        ([path, "--criteria", "casual"], "argument criteria"),
        ([path, "--ratios", "half"], "argument ratios"),
    ):
        assert cli.main(["compare", *wrong, "--output", str(tmp_path / "wrong")]) == 2
        assert said in capsys.readouterr().err

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "prune", interrupted)
    assert cli.main([*call[:-1], str(tmp_path / "stopped")]) == 130
    assert "stopped" in capsys.readouterr().err


def test_what_carries_weights_and_data_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench" / "comparisons"))
    carriers = importlib.import_module("carriers")
    assert carriers.package("infoslice", "pip install infoslice").name == "infoslice"
    with pytest.raises(FileNotFoundError, match="absent is missing: pip install absent"):
        carriers.package("absent", "pip install absent")
    with pytest.raises(FileNotFoundError, match="/absent is missing: apt-get install absent"):
        carriers.folder("/absent", "apt-get install absent")
