"""A few small calls of every op, for compute-sanitizer: python -m bench.gpu_calls [--seconds N].

Inputs are made on the CPU and results looked at there, so that all but a few kernels are ours.
Stops by itself when the time is over, and says how far it came.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from bench import hopper
from gpu_checks import Cuda, Machine, check_values

if TYPE_CHECKING:
    from gpu_checks import Case


def calls(most: int = 1 << 17) -> list[Case]:
    """Cases of all ops in turns, the small ones: every second of them."""
    import test_gpu_package

    queues: dict[str, list[Case]] = {}
    for case in test_gpu_package.CASES:
        queues.setdefault(case.op, []).append(case)
    turns = itertools.zip_longest(*(queue[::2] for queue in queues.values()))
    found = [case for turn in turns for case in turn if case is not None]
    return [case for case in found if elements(case) <= most]


def elements(case: Case) -> int:
    from gpu_checks import tensors

    return sum(tensor.numel() for tensor in tensors(case.arguments()))


def main(machine: Machine, seconds: float) -> None:
    until, cases = time.monotonic() + seconds, calls()
    for number, case in enumerate(cases):
        if time.monotonic() > until:
            print(f"time is over: {number} of {len(cases)} calls", flush=True)
            return
        check_values(case, machine)
    print(f"all {len(cases)} calls", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cpu", action="store_true", help="there, to try this program")
    parser.add_argument("--hopper", action="store_true", help="the kernels that no op calls yet")
    options = parser.parse_args()
    if options.hopper:
        for shape, axis in [((200, 64), -1), ((2, 136, 8, 16), 1)]:
            hopper.covariance(torch.randn(shape).bfloat16().cuda(), axis)
        torch.cuda.synchronize()
        sys.exit()
    main(Machine() if options.cpu else Cuda(), options.seconds)
