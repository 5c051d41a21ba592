"""The command ``infoslice``."""

from __future__ import annotations

import argparse
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
    options = parser.parse_args(arguments)
    try:
        if options.command == "doctor":
            from infoslice.doctor import doctor

            print(doctor())
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


if __name__ == "__main__":
    sys.exit(main())
