"""The command ``infoslice``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="infoslice", description="Prune networks by the information their channels carry."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what was built, what is there, what is missing")
    demo = commands.add_parser("demo", help="prune the embedded network with no data")
    demo.add_argument("--fast", action="store_true", help="a smaller fit, under a minute")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("infoslice-demo"),
        help="folder for table, plot and pruned model (default: %(default)s)",
    )
    compare = commands.add_parser(
        "compare", help="prune a model by several methods and evaluate what is left"
    )
    compare.add_argument(
        "task",
        help="a Python file and a function in it that returns an infoslice.comparison.Task: "
        "path/to/file.py[:function] (default: task)",
    )
    for name, default, text in (
        ("criteria", "causal,random", "with options after a colon: causal:score=marginal"),
        ("compensations", "none,sequential", "a+b: both"),
        ("allocations", "global", "how widths are shared out"),
        ("refinements", "none", "of the selection"),
        ("ratios", "0.25,0.5", "shares of the channels to remove, or budgets: macs=60%%"),
    ):
        compare.add_argument(f"--{name}", default=default, help=f"{text} (default: {default})")
    compare.add_argument("--sources", help="of inputs, by their names in the task (default: all)")
    compare.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    compare.add_argument(
        "--output",
        type=Path,
        default=Path("infoslice-comparison"),
        help="folder for CSV file, table and plot; a comparison begun there is continued "
        "(default: %(default)s)",
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    try:
        if options.command == "doctor":
            from infoslice.doctor import doctor

            print(doctor())
        elif options.command == "compare":
            return _compare(options, shlex.join(["infoslice", *given]))
        else:
            import torch

            from infoslice.demo import run

            # The network is so small that a second thread costs more than it brings.
            torch.set_num_threads(1)
            run(options.output, fast=options.fast)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _compare(options: argparse.Namespace, command: str) -> int:
    from infoslice.comparison import compare, load_task, text
    from infoslice.comparison.task import read_ratio, split

    try:
        task = load_task(options.task)
        rows = compare(
            task,
            criteria=split(options.criteria),
            compensations=split(options.compensations),
            allocations=split(options.allocations),
            refinements=split(options.refinements),
            ratios=[read_ratio(ratio) for ratio in split(options.ratios)],
            sources=None if options.sources is None else split(options.sources),
            seeds=options.seeds,
            output=options.output,
            command=command,
        )
    except ValueError as error:
        print(f"infoslice: {error}", file=sys.stderr)
        return 2
    print(text(rows, task.lower_is_better))
    print(f"\nwrote {options.output / f'compare-{task.name}.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
