"""What was built, and the rules of the native tree that a compiler does not enforce."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from infoslice import _core, ops

ROOT = Path(__file__).parents[1]
NATIVE_FILES = sorted(
    path
    for path in (ROOT / "csrc").rglob("*")
    if path.suffix in {".h", ".cpp", ".cu", ".cuh"} and path.is_file()
)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def test_build_info():
    info = ops.build_info()
    assert set(info) == set(ops.BuildInfo.__annotations__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info["version"])
    assert info["compiler"].split()[0] in {"gcc", "clang"}
    assert info["cpu_level"] in info["cpu_levels"]
    assert info["cuda"] == bool(info["cuda_architectures"])
    assert info["torch"] == torch.__version__
    assert info["numpy"] == np.__version__
    assert "covariance" in info["ops"]
    assert "-ffast-math" not in info["compiler_flags"]
    assert "-march" not in info["compiler_flags"]


def test_the_version_stands_in_one_place():
    text = (ROOT / "pyproject.toml").read_text()
    declared = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert declared
    assert ops.build_info()["version"] == declared.group(1)


def test_the_cuda_module_imports_without_a_driver():
    if not ops.build_info()["cuda"]:
        pytest.skip("built without CUDA kernels")
    module = importlib.import_module("infoslice._cuda")
    assert module.runtime_version >= 12000
    assert module.device_count() == torch.cuda.device_count() or not torch.version.cuda
    assert {"90", "120"} <= set(ops.build_info()["cuda_architectures"])


@pytest.mark.parametrize("path", NATIVE_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_neither_python_nor_torch(path):
    includes = INCLUDE.findall(path.read_text())
    foreign = [i for i in includes if i.startswith(("torch/", "ATen/", "c10/", "aten/"))]
    assert foreign == []
    python = [i for i in includes if i.startswith(("pybind11/", "Python.h", "numpy/"))]
    modules = {"core.cpp", "cuda.cpp", "emu.cpp"}
    assert python == [] or (path.parent.name == "bindings" and path.name in modules)
    if "bindings" not in path.parts:
        assert not any(i.startswith("bindings/") for i in includes)


def test_one_file_states_the_abi_of_torch():
    users = {p.name for p in NATIVE_FILES if "aoti_torch" in p.read_text()}
    assert users == {"torch_abi.h", "torch_ops.cpp"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_missing_core_says_how_to_build_it():
    result = run("import sys; sys.modules['infoslice._core'] = None; import infoslice.ops")
    assert result.returncode != 0
    assert "ImportError: infoslice: the native module infoslice._core is missing" in result.stderr
    assert "pip install -e ." in result.stderr


def test_an_old_torch_is_refused_with_the_remedy():
    # No torch in the process is the oldest of all.
    result = run(
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('_core', {_core.__file__!r})\n"
        "core = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
        "core.register_torch('/nowhere', '2.9.1')\n"
    )
    assert "RuntimeError: infoslice needs torch >= 2.10, got torch 2.9.1" in result.stderr
    assert "pip install 'torch>=2.10'" in result.stderr


def test_threads_survive_a_fork():
    # A forked child has none of the pool's threads: it must not wait for them.
    result = run(
        "import os, torch\n"
        "from infoslice import ops\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(60000, 64)\n"
        "before = ops.covariance(x).covariance\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(ops.covariance(x).covariance, before) else 1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert status == 0, status\n"
    )
    assert result.returncode == 0, result.stderr


def test_calls_from_several_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    x = torch.randn(30000, 48)
    expected = ops.covariance(x).covariance
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: ops.covariance(x).covariance, range(16)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(result, expected) for result in results)


def test_an_unknown_cpu_level_is_refused():
    result = run("import os\nos.environ['INFOSLICE_CPU_LEVEL'] = 'v5'\nimport infoslice")
    assert result.returncode != 0
    assert "INFOSLICE_CPU_LEVEL: expected baseline, v3 or v4, got 'v5'" in result.stderr
