"""What was built, what the machine has, and what is missing with the command that mends it."""

from __future__ import annotations

import importlib.util
import platform
import sys

import torch

from infoslice.ops import build_info

__all__ = ["doctor"]


def doctor() -> str:
    """A report of a few lines, for people and for bug reports."""
    info = build_info()
    cuda = f"kernels for {', '.join(info['cuda_architectures'])}" if info["cuda"] else "not built"
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        f"infoslice   {info['version']}",
        f"python      {platform.python_version()} at {sys.prefix}",
        f"torch       {info['torch']}, sees {', '.join(devices)}",
        f"numpy       {info['numpy']}",
        f"CPU kernels {info['compiler']}, levels {', '.join(info['cpu_levels'])}; "
        f"this machine runs {info['cpu_level']}",
        f"CUDA        {cuda}",
        f"ops         {', '.join(info['ops'])}",
        f"threads     torch uses {torch.get_num_threads()}",
    ]
    lines += [f"missing     {what}: {mend}" for what, mend in _missing(info["cuda"])]
    return "\n".join(lines)


def _missing(cuda_built: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if torch.cuda.is_available() and not cuda_built:
        found.append(
            (
                "CUDA kernels",
                "install the CUDA toolkit (nvcc on PATH), then in the source folder "
                "'pip install --force-reinstall --no-deps .'",
            )
        )
    if cuda_built and torch.version.cuda is None:
        found.append(
            (
                "a torch with CUDA",
                "this torch is a CPU build; the CUDA kernels wait for one from "
                "'pip install torch' on a machine with a GPU",
            )
        )
    if importlib.util.find_spec("matplotlib") is None:
        found.append(("matplotlib, for plots", "pip install 'infoslice[plot]'"))
    return found
