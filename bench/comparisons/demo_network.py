"""The network of the demo on its 2,000 images: infoslice compare bench/comparisons/demo_network.py

Needs nothing that is not in the package. Inputs are fitted as by ``infoslice demo --fast``. Two
runs have to differ by about 3 points to differ beyond chance where they are right half of the time,
by 2 where nine times of ten (95 % of a binomial).
"""

from __future__ import annotations

import torch

from infoslice.comparison import Task
from infoslice.demo import load_network
from infoslice.demo.comparison import load_images
from infoslice.demo.network import accuracy


def task() -> Task:
    pixels, labels = load_images()
    return Task(
        "demo-network",
        load_network(),
        torch.zeros(1, 1, 28, 28),
        lambda network: accuracy(network, pixels, labels),  # type: ignore[arg-type]
        {"matched": "matched"},
        options={"samples": 96, "match_steps": 80},
    )
