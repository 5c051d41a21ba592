"""Run CMake for the native modules; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure, build and install with CMake; each Python keeps a build directory."""

    def run(self) -> None:
        """Build ``_core`` and, where nvcc is found, ``_cuda``."""
        # An environment that is called by path, not activated, is not on the PATH.
        os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
        package = "infoslice"
        in_place = self.inplace or self.editable_mode
        target = ROOT / "python" / package if in_place else Path(self.build_lib).resolve() / package
        build = ROOT / "build" / str(sys.implementation.cache_tag)
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(build)  # the checkout was moved or copied: CMake refuses such a cache
        # Each isolated build has its own ninja, Python and pybind11, and the cached paths of the
        # last one may be gone: name them every time.
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or ''}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DINFOSLICE_VERSION={self.distribution.get_version()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        # A build without CUDA must not leave the _cuda module of an earlier one.
        for module in target.glob(f"_c*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            module.unlink()
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)

    def get_outputs(self) -> list[str]:
        """Nothing that setuptools should copy: CMake installs where the modules belong."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """See ``get_outputs``."""
        return {}


setup(ext_modules=[Extension("infoslice._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
