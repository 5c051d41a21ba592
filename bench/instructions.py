"""Counts the instructions of three central kernels: python bench/instructions.py DRIVER [--update].

DRIVER is the program built from instructions.cpp (CMake target ``instructions``). callgrind counts
the same whatever else the machine does, so a kernel that grew shows where a clock would not. Counts
are compared with results/instructions.json, which holds for one compiler; by another they are only
printed. callgrind knows no AVX-512, so it is the bodies for x86-64-v3 that are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = Path(__file__).parent / "results" / "instructions.json"
KERNELS = ("covariance", "logdet", "slice_channels")
MARGIN = 1.03


def count(driver: Path, kernel: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
             "--collect-atstart=no", "--toggle-collect=infoslice_counted", str(driver), kernel],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not found or not int(found.group(1)):
        raise SystemExit(f"instructions: valgrind counted nothing\n{run.stderr}")
    return int(found.group(1))


def compiler() -> str:
    command = [os.environ.get("CXX", "c++"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver", type=Path)
    parser.add_argument("--update", action="store_true", help="keep the counts of this run")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions: not counted, there is no valgrind here")
        return 0
    counts = {kernel: count(options.driver, kernel) for kernel in KERNELS}
    if options.update:
        KEPT.write_text(json.dumps({"compiler": compiler(), "counts": counts}, indent=2) + "\n")
    kept = json.loads(KEPT.read_text())
    comparable = kept["compiler"] == compiler()
    grown = []
    for kernel, instructions in counts.items():
        ratio = instructions / kept["counts"][kernel]
        print(f"{kernel:16s} {instructions:12,d} instructions, {ratio:.3f} of the kept count")
        if ratio > MARGIN:
            grown.append(kernel)
    if not comparable:
        print(f"kept by {kept['compiler']}, counted by {compiler()}: no verdict")
    elif grown:
        print(f"grown by more than {MARGIN - 1:.0%}: {', '.join(grown)} (--update accepts it)")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
