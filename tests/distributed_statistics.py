"""Run by torchrun from test_statistics_distributed.py: each process measures some samples."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from infoslice.distributed import all_reduce
from infoslice.statistics import Accumulator

COUNTS = (5, 0, 8)  # samples of each process
OPTIONS = (
    {"sampling_errors": True, "outputs": {"odd": nn.Tanh()}},
    {"structure": "block", "block_sizes": {"even": 2}, "sampling_errors": True},
    {"structure": "diagonal"},
)


class Model(nn.Module):
    """Of its layers one is called on every other sample, and one never."""

    def __init__(self):
        super().__init__()
        self.even, self.odd, self.never = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, number):
        return self.even(x) if number % 2 == 0 else self.odd(self.odd(x))


def samples():
    torch.manual_seed(0)
    model = Model().double()
    x = torch.randn(sum(COUNTS), 1, 3, 4, dtype=torch.float64) * 3 + 30
    return model, x, torch.rand(sum(COUNTS), 1, 3)


def measured(options, first, last):
    """Of some of the samples; the last three of all with weights."""
    model, x, weights = samples()
    with Accumulator(model, ["even", "odd", "never"], **options) as found:
        for number in range(first, last):
            with found.weighted(weights[number] if number > 9 else None):
                model(x[number], number)
    return found


def main(folder):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    starts = [sum(COUNTS[:r]) for r in range(3)] + [sum(COUNTS)]
    if world == 2:
        starts = [0, 0, sum(COUNTS)]  # all to the second
    for case, options in enumerate(OPTIONS):
        own = measured(options, starts[rank], starts[rank + 1])
        before = own.state_dict()
        reduced = all_reduce(own)
        assert own.state_dict().keys() == before.keys()
        torch.save(reduced.state_dict(), folder / f"{case}-{rank}.pt")
    try:
        all_reduce(Accumulator(samples()[0], ["even"] if rank else ["odd"]))
    except ValueError as error:
        (folder / f"refused-{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
