"""The README and the docs say what is there: commands, files, links, names and code."""

from __future__ import annotations

import functools
import inspect
import os
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import infoslice
from infoslice.cli import main
from infoslice.criteria import CRITERIA, causal

ROOT = Path(__file__).parents[1]
TREES = ("csrc", "python", "tests", "bench", "docs", ".ci")
FILES = [p for tree in TREES for p in (ROOT / tree).rglob("*")] + list(ROOT.iterdir())
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "csrc/README.md",
     ROOT / "bench/README.md"]
)  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))


def commands_of_ci() -> tuple[str, ...]:
    """What the shell makes of the two assignments in .ci/run."""
    lines = re.findall(r"^(?:demo|tests)=.*$", CI, re.MULTILINE)
    script = "\n".join([*lines, r'printf "%s\0%s" "$demo" "$tests"'])
    found = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return tuple(found.stdout.split("\0"))


def test_ci_runs_the_two_commands_of_the_readme():
    commands = tuple(block.strip() for block in blocks(README, "sh"))
    assert commands == commands_of_ci()
    demo, tests = commands
    for command in commands:  # one line that does all of its own set-up
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install torch==")
        assert "\n" not in command
    assert demo.endswith("&& .venv/bin/infoslice demo")
    assert tests.endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")
    assert re.search(r'^step .* bash -c "\$demo --fast"$', CI, re.MULTILINE)
    assert re.search(r'^step .* bash -c "\$tests"$', CI, re.MULTILINE)


@pytest.mark.parametrize(
    "check",
    [
        r"^step .* ruff check \.$",
        r"^step .* ruff format --check \.$",
        r"^step .* mypy$",
        r"^step .* native_style$",
        r"clang-format --dry-run --Werror$",
        r"^step .* sanitized$",
        r"-DINFOSLICE_SANITIZE=address,undefined$",
        r'^step .* env CMAKE_ARGS=-DINFOSLICE_WERROR=ON bash -c "\$tests"$',
        r"^step .* cuda_built$",
    ],
)
def test_ci_runs_every_check(check):
    assert re.search(check, CI, re.MULTILINE)


def test_ci_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "\nset -euo pipefail\n" in CI
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


# What a reader makes by the commands shown.
MADE = {"smaller.safetensors", "smaller.json", "path.safetensors", "path.json", "infoslice-demo/"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_exist(page):
    form = re.compile(r"[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|h|cpp|cu|txt|toml|json|safetensors))")
    for name in {code for code in inline_code(page) if form.fullmatch(code)} - MADE:
        tail = "/" + name.rstrip("/")
        assert any(path.as_posix().endswith(tail) for path in FILES), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_the_package_exist(page):
    for code in inline_code(page):
        for name in re.findall(r"\binfoslice\.([\w.]+\w)", code):
            if name == "pruned" or name.startswith(("_core", "_cuda")):
                continue  # the format of a file; modules that may not be built
            pkgutil.resolve_name(f"infoslice.{name}")  # imports packages that nobody else does


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_exist(page, capsys):
    for command in re.findall(r"infoslice (demo|doctor|\w+)`", page.read_text(encoding="utf-8")):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
    capsys.readouterr()


def test_arguments_named_exist():
    known = {*inspect.signature(infoslice.prune).parameters, *inspect.signature(causal).parameters}
    shown = {
        name
        for code in inline_code(ROOT / "docs/method.md")
        for name in re.findall(r"^(\w+)=", code)
    }
    assert len(shown) > 8
    assert shown <= known


def test_criteria_are_named():
    page = (ROOT / "docs" / "criteria.md").read_text(encoding="utf-8")
    assert '"causal"' in README
    assert "docs/criteria.md" in README
    for name in CRITERIA:
        assert f"`{name}`" in page


CODE = [(page, i) for page in PAGES for i in range(len(blocks(page.read_text(), "python")))]


@pytest.mark.parametrize(("page", "index"), CODE, ids=[f"{name_of(p)}-{i}" for p, i in CODE])
def test_code_runs(page, index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # To fit as many inputs as the default asks for takes half a minute.
    few = functools.partial(infoslice.prune, samples=32, match_steps=3)
    monkeypatch.setattr(infoslice, "prune", few)
    code = blocks(page.read_text(encoding="utf-8"), "python")[index]
    exec(compile(code, f"{name_of(page)}, block {index + 1}", "exec"), {"__name__": "__main__"})
    capsys.readouterr()


def test_the_readme_shows_how_to_use_it():
    code = "".join(blocks(README, "python"))
    for call in (
        "infoslice.prune", "infoslice.save_pruned", "infoslice.load_pruned", "ops.covariance",
        "ops.marginal_mi", "ops.logdet", "ops.slice_channels",
    ):  # fmt: skip
        assert f"{call}(" in code
