"""Builds of tests/native: the CUDA kernels on the CPU emulation of CUDA's execution model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def build(folder: Path, target: str, *options: str) -> Path:
    """Configure and build a target of tests/native."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    assert cmake, "tests need cmake: pip install cmake ninja"
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), *generator, *options]
    configure += ["-DINFOSLICE_TESTS=ON", "-DINFOSLICE_CUDA=OFF"]
    for command in (configure, [cmake, "--build", str(folder), "--target", target, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (built,) = (p for p in folder.rglob(f"{target}*") if p.is_file() and os.access(p, os.X_OK))
    return built


def load_emu(folder: Path) -> Any:
    """Build and import the module _emu."""
    import pybind11

    path = build(
        folder,
        "_emu",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    )
    spec = importlib.util.spec_from_file_location("_emu", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
