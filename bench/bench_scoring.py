"""Scores of all layers of a network, given their covariances: python -m bench.bench_scoring.

The layers are those of ResNet-50 (but its stem) and of ViT-B (the second layer of every MLP, and
the projection behind the heads, a head being a channel), each scored for what it reads. Peers are
loops of torch calls, one layer after the other. A shape that occurs several times is run once and
counts as often as it occurs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.contest import OURS, Case, Contest, Part, tests_of
from infoslice.criteria import causal, obs
from infoslice.group_statistics import LayerStatistics
from infoslice.statistics import Moments

DEFINITION, DOWNDATES = "torch by the definition", "torch, a downdate per channel"
CLOSED_FORM = "torch, one factorisation"
START = "its start"
NOISE, RIDGE = 1.0, 1e-2
STEPS = 8  # channels that a loop over channels is timed for


class Shape(NamedTuple):
    """A layer: channels read, variables of each, outputs; and how often it occurs."""

    channels: int
    width: int
    outputs: int
    times: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.width} to {self.outputs}"


def resnet50() -> list[Shape]:
    count: dict[tuple[int, int, int], int] = {}
    stream = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers = [(stream, 1, width), (width, 9, width), (width, 1, 4 * width)]
            layers += [(stream, 1, 4 * width)] if block == 0 else []
            stream = 4 * width
            for layer in layers:
                count[layer] = count.get(layer, 0) + 1
    count[stream, 1, 1000] = 1
    return [Shape(*layer, times) for layer, times in count.items()]


NETWORKS = {"ResNet-50": resnet50(), "ViT-B": [Shape(3072, 1, 768, 12), Shape(12, 64, 768, 12)]}


@dataclass
class Given:
    """As :class:`infoslice.GroupStatistics`, of one layer."""

    consumers: tuple[LayerStatistics, ...]
    channels: int
    name: str = "given"


def given(shape: Shape) -> Given:
    """Activations of 256 factors and noise of their own; weights as at the start of training."""
    d = shape.channels * shape.width
    factors = torch.randn(256, d, dtype=torch.float64)
    covariance = factors.T @ factors / 256
    covariance.diagonal().add_(torch.rand(d, dtype=torch.float64))
    weight = torch.randn(shape.outputs, d, dtype=torch.float64) / d**0.5
    none = covariance.new_empty(0)
    moments = Moments(1, none.new_zeros(d), none, covariance, none.view(d, 0), none.view(0, 0))
    variables = torch.arange(d).view(shape.channels, shape.width)
    layer = LayerStatistics("reader", lambda: moments, lambda: moments, weight, variables)
    return Given((layer,), shape.channels)


# -- what one would write -------------------------------------------------------------------------


def standardised(s: Tensor, w: Tensor) -> Tensor:
    """So that the noise has variance one."""
    variances = ((w @ s) * w).sum(1)
    return w / (variances * NOISE * len(w)).sqrt()[:, None]


def ridged(s: Tensor) -> Tensor:
    return s + RIDGE * s.diagonal().mean() * torch.eye(len(s), dtype=s.dtype)


def inverse(s: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(s))


def blocks(p: Tensor, r: int) -> Tensor:
    c = len(p) // r
    return p.view(c, r, c, r).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def conditional_by_definition(s: Tensor, w: Tensor, r: int) -> Tensor:
    """Inverse of the joint covariance against that of the inputs."""
    d, s, w = len(s), ridged(s), standardised(s, w)
    cross = s @ w.T
    own = w @ cross + torch.eye(len(w), dtype=s.dtype)
    joint = torch.cat([torch.cat([s, cross], 1), torch.cat([cross.T, own], 1)])
    a, b = inverse(s), inverse(joint)[:d, :d]
    if r == 1:
        return 0.5 * (b.diagonal() / a.diagonal()).log()
    return 0.5 * (blocks(b, r).logdet() - blocks(a, r).logdet())


def conditional_closed_form(s: Tensor, w: Tensor, r: int) -> Tensor:
    a, w = inverse(ridged(s)), standardised(s, w)
    if r == 1:
        return 0.5 * torch.log1p(w.square().sum(0) / a.diagonal())
    rows = w.T.reshape(-1, r, len(w))
    own = blocks(a, r)
    return 0.5 * ((own + rows @ rows.mT).logdet() - own.logdet())


def obs_one_inverse(s: Tensor, w: Tensor, r: int) -> Tensor:
    p = inverse(ridged(s))
    total = ((w @ s) * w).sum()
    if r == 1:
        return w.square().sum(0) / p.diagonal() / total
    rows = w.T.reshape(-1, r, len(w))
    return (rows * torch.linalg.solve(blocks(p, r), rows)).sum((1, 2)) / total


def marginal_by_definition(s: Tensor, w: Tensor, r: int, channels: int) -> Tensor:
    """Log-determinants of the covariance of each channel with the outputs."""
    s, w = ridged(s), standardised(s, w)
    cross = w @ s
    own, found = cross @ w.T + torch.eye(len(w), dtype=s.dtype), []
    of_own = own.logdet()
    for c in range(channels):
        at = slice(c * r, c * r + r)
        x, xy = s[at, at], cross[:, at]
        joint = torch.cat([torch.cat([own, xy], 1), torch.cat([xy.T, x], 1)])
        found.append(0.5 * (x.logdet() + of_own - joint.logdet()))
    return torch.stack(found)


def marginal_one_factorisation(s: Tensor, w: Tensor, r: int) -> Tensor:
    """That of the outputs, as all channels share it."""
    s, w = ridged(s), standardised(s, w)
    cross = w @ s
    factor = torch.linalg.cholesky(cross @ w.T + torch.eye(len(w), dtype=s.dtype))
    z = torch.linalg.solve_triangular(factor, cross, upper=False)
    if r == 1:
        return -0.5 * torch.log1p(-z.square().sum(0) / s.diagonal())
    rows = z.T.reshape(-1, r, len(w))
    own = blocks(s, r)
    return 0.5 * (own.logdet() - (own - rows @ rows.mT).logdet())


def greedy_causal_loop(s: Tensor, w: Tensor, r: int, steps: int) -> Tensor:
    """Downdates of the two precision matrices, step by step."""
    a, w = inverse(ridged(s)), standardised(s, w)
    return downdates([a, a + w.T @ w], r, steps, lambda a, b: 0.5 * (logdet(b) - logdet(a)))


def greedy_obs_loop(s: Tensor, w: Tensor, r: int, steps: int) -> Tensor:
    """Downdates of the precision matrix and of the weights, step by step, as ZipLM does."""
    p = inverse(ridged(s))
    w = w / ((w @ s) * w).sum().sqrt()
    left, losses, channels = torch.zeros(len(p) // r, dtype=p.dtype), [], len(p) // r
    for _ in range(steps):
        rows, own = w.T.reshape(channels, r, -1), blocks(p, r)
        if r == 1:
            loss = rows.square().sum((1, 2)) / own[:, 0, 0] + left
        else:
            loss = (rows * torch.linalg.solve(own, rows)).sum((1, 2)) + left
        c = int(loss.argmin())
        losses.append(loss[c])
        left[c] = torch.inf
        at = slice(c * r, c * r + r)
        pull = torch.linalg.solve(p[at, at], p[at])
        w = w.addmm(w[:, at].clone(), pull, alpha=-1)
        p.addmm_(p[:, at].clone(), pull, alpha=-1)
        p[at, at] = torch.eye(r, dtype=p.dtype)
    return torch.stack(losses).cummax(0).values


def logdet(own: Tensor) -> Tensor:
    return own[:, 0, 0].log() if own.shape[1] == 1 else own.logdet()


def downdates(matrices: list[Tensor], r: int, steps: int, loss_of: Callable[..., Tensor]) -> Tensor:
    left, losses = torch.zeros(len(matrices[0]) // r, dtype=torch.float64), []
    for _ in range(steps):
        loss = loss_of(*(blocks(p, r) for p in matrices)) + left
        c = int(loss.argmin())
        losses.append(loss[c])
        left[c] = torch.inf
        at = slice(c * r, c * r + r)
        for p in matrices:
            p.addmm_(p[:, at].clone(), torch.linalg.solve(p[at, at], p[at]), alpha=-1)
            p[at, at] = torch.eye(r, dtype=p.dtype)
    return torch.stack(losses).cummax(0).values


# -- contests --------------------------------------------------------------------------------------

Peer = Callable[[Tensor, Tensor, int], Tensor]


def one_shot(ours: Callable[..., Tensor], peers: dict[str, Peer], shape: Shape) -> Contest:
    layer = given(shape)
    s, w = layer.consumers[0].moments.covariance_x, layer.consumers[0].weight
    entrants: dict[str, Any] = {OURS: lambda: ours(layer)}
    for name, peer in peers.items():
        entrants[name] = partial(peer, s, w, shape.width)
    return Contest(entrants, next(iter(peers.values()))(s, w, shape.width), 1e-7)


def greedy(ours: Callable[..., Tensor], loop: Callable[..., Tensor], shape: Shape) -> Contest:
    """The loop is timed for some steps; what comes before the first is taken off."""
    layer = given(shape)
    s, w = layer.consumers[0].moments.covariance_x, layer.consumers[0].weight
    expected = loop(s, w, shape.width, STEPS)
    entrants: dict[str, Any] = {
        OURS: lambda: ours(layer).sort().values,
        DOWNDATES: partial(loop, s, w, shape.width, STEPS),
        START: Part(partial(loop, s, w, shape.width, 1), 1, None),
    }
    return Contest(entrants, expected, 1e-6, lambda losses: losses[:STEPS])


def marginal(shape: Shape) -> Contest:
    found = one_shot(
        partial(causal, score="marginal", ridge=RIDGE),
        {CLOSED_FORM: marginal_one_factorisation},
        shape,
    )
    layer = given(shape).consumers[0]
    s, w = layer.moments.covariance_x, layer.weight
    loop = partial(marginal_by_definition, s, w, shape.width)
    expected = marginal_one_factorisation(s, w, shape.width)
    parts = {
        DEFINITION: Part(partial(loop, STEPS), 1, expected[:STEPS]),
        START: Part(partial(loop, 1), 1, None),
    }
    return Contest({**found.entrants, **parts}, found.expected, found.bound)


TASKS: dict[str, tuple[Sequence[str], Callable[[Shape], Contest]]] = {
    "causal, conditional, one shot": (
        (OURS, DEFINITION, CLOSED_FORM),
        partial(
            one_shot,
            partial(causal, greedy=False, ridge=RIDGE),
            {DEFINITION: conditional_by_definition, CLOSED_FORM: conditional_closed_form},
        ),
    ),
    "causal, conditional, greedy": (
        (OURS, DOWNDATES, START),
        partial(greedy, partial(causal, ridge=RIDGE), greedy_causal_loop),
    ),
    "causal, marginal": ((OURS, CLOSED_FORM, DEFINITION, START), marginal),
    "obs, one shot": (
        (OURS, CLOSED_FORM),
        partial(
            one_shot,
            partial(obs, greedy=False, ridge=RIDGE),
            {CLOSED_FORM: obs_one_inverse},
        ),
    ),
    "obs, greedy": (
        (OURS, DOWNDATES, START),
        partial(greedy, partial(obs, ridge=RIDGE), greedy_obs_loop),
    ),
}

CASES = [
    Case(f"{task}, {shape} ({network})", names, partial(make, shape), dtype=torch.float64)
    for task, (names, make) in TASKS.items()
    for network, shapes in NETWORKS.items()
    for shape in shapes
    if shape.channels * shape.width <= 1152
]

test_contests = tests_of(CASES)


def seconds_of(task: str, shape: Shape, rounds: int) -> dict[str, float]:
    """CPU seconds of each entrant for one layer; of a loop over channels for all of them."""
    contest = TASKS[task][1](shape)
    for name in contest.entrants:
        contest.error(name)
    took: dict[str, list[float]] = {name: [] for name in contest.entrants}
    wide = shape.channels * shape.width > 1000
    for _ in range(1 if wide else rounds):
        for name, seconds in took.items():
            start = time.process_time()
            contest.run(name)()
            seconds.append(time.process_time() - start)
    found = {name: median(seconds) for name, seconds in took.items()}
    if START in found:
        first, loop = found.pop(START), DOWNDATES if DOWNDATES in found else DEFINITION
        step = max(0.0, found[loop] - first) / (STEPS - 1)
        found[loop] = first + step * (shape.channels - 1)
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_scoring", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of layers up to 1000 variables")
    parser.add_argument(
        "--most", type=int, default=3072, help="variables; wider layers are left out"
    )
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args(arguments)
    from threadpoolctl import threadpool_limits

    from bench.compare import machine

    torch.set_num_threads(1)
    lines = machine(" ".join(["python -m bench.bench_scoring", *arguments]))
    lines += [
        "",
        "| network | criterion | against | goal | reached | ours | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with threadpool_limits(1):
        for network, shapes in NETWORKS.items():
            at_most = [s for s in shapes if s.channels * s.width <= options.most]
            for task in TASKS:
                total: dict[str, float] = {}
                for shape in at_most:
                    torch.manual_seed(20260713)
                    for name, seconds in seconds_of(task, shape, options.rounds).items():
                        total[name] = total.get(name, 0.0) + shape.times * seconds
                ours = total.pop(OURS)
                for name, seconds in total.items():
                    row = (
                        f"| {network} | {task} | {name} | 3x | **{seconds / ours:.3g}x** "
                        f"| {ours:.3g} s | {seconds:.3g} s |"
                    )
                    print(row, flush=True)
                    lines.append(row)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
