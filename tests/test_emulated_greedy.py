"""The CUDA kernels of the greedy ops on the CPU emulation, against the CPU kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emulation import COMPILER
from infoslice import ops

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

ELIMINATIONS = ["backward_elimination", "obs_elimination"]


def forward(
    emu: Any,
    cov: torch.Tensor,
    x: Any,
    y: Any,
    count: int,
    group_size: int = 1,
    start: Any = (),
    noise_variance: float = 0.0,
    seed: int = 0,
) -> tuple[torch.Tensor, ...]:
    args = (list(x), list(y), count, group_size, list(start), noise_variance, seed)
    return tuple(map(torch.from_numpy, emu.forward_selection(cov.numpy(), *args)))


def eliminate(
    emu: Any,
    name: str,
    first: list[torch.Tensor],
    second: list[torch.Tensor],
    count: int,
    group_size: list[int],
    keep: Any = (),
    seed: int = 0,
) -> tuple[torch.Tensor, ...]:
    matrices = ([m.numpy() for m in layers] for layers in (first, second))
    args = (*matrices, count, group_size, list(keep), seed)
    return tuple(map(torch.from_numpy, emu.greedy_elimination(name == "obs_elimination", *args)))


def assert_same(actual: Any, expected: Any, bound: float = 1e-9) -> None:
    assert actual[2].item() == expected[2].item()
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=bound, atol=bound, equal_nan=True)


def same_forward(emu: Any, cov: torch.Tensor, x: Any, y: Any, count: int, **options: Any) -> Any:
    expected = ops.forward_selection(cov, x, y, count, **options)
    assert_same(forward(emu, cov, x, y, count, **options), expected)
    return expected


def same_elimination(emu: Any, name: str, *args: Any, sizes: list[int], **options: Any) -> Any:
    expected = getattr(ops, name)(*args, group_size=sizes, **options)
    assert_same(eliminate(emu, name, *args, group_size=sizes, **options), expected)
    return expected


def readers(channels: int, sizes: list[int], spd: Any, outputs: int = 5) -> Any:
    """Of layers that read the channels: precision matrices, and those given Y or W'W."""
    precision = [torch.linalg.inv(spd(channels * r, 30.0)) for r in sizes]
    precision = [(p + p.mT) / 2 for p in precision]
    weights = [torch.randn(outputs, channels * r, dtype=torch.float64) for r in sizes]
    gram = [w.mT @ w for w in weights]
    given = [p + g / 0.3 for p, g in zip(precision, gram, strict=True)]
    return precision, {"backward_elimination": given, "obs_elimination": gram}


# ---- the same choice -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "size"), [(1, 1), (9, 1), (70, 1), (132, 1), (7, 2), (24, 3), (9, 9), (4, 33)]
)
@pytest.mark.parametrize("outputs", [0, 1, 70])
def test_forward_selection(groups, size, outputs, emu, spd):
    n = groups * size + outputs
    cov, order = spd(n + 2), torch.randperm(n + 2).tolist()
    x, y = order[: groups * size], order[groups * size : n]
    options: dict[str, Any] = {"group_size": size, "noise_variance": 0.1}
    for count in {0, 1, groups // 2, groups} if n < 100 else {groups}:
        same_forward(emu, cov, x, y, count, **options)
    start = [groups - 1, 0, groups // 2][: max(0, min(3, groups - 2))]
    same_forward(emu, cov, x, y, groups - len(start), start=start, **options)
    same_forward(emu, cov, x, y, 0, start=range(min(groups, 9)), **options)


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [
        (1, [1]),
        (9, [1]),
        (64, [1]),
        (132, [1]),
        (35, [2]),
        (23, [3]),
        (15, [9]),
        (5, [33]),
        (2, [70]),
        (66, [1, 1]),
        (23, [3, 1]),
        (9, [1, 33, 2]),
        (15, [2, 9, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ELIMINATIONS)
def test_eliminations(channels, sizes, name, emu, spd):
    first, second = readers(channels, sizes, spd)
    for count in {0, 1, channels // 2, channels} if channels < 64 else {channels}:
        same_elimination(emu, name, first, second[name], count, sizes=sizes)
    keep = [channels - 1, 0, channels // 3][: (channels - 1) // 2]
    left = channels - len(keep)
    same_elimination(emu, name, first, second[name], left, sizes=sizes, keep=keep)
    same_elimination(emu, name, first, second[name], 0, sizes=sizes, keep=range(channels))


def test_float32_and_strides(emu, spd):
    a, b = spd(48, 10.0), spd(48, 10.0)
    views = [
        lambda m: m.float(),
        lambda m: torch.where(torch.ones(48, 48).triu(1).bool(), torch.nan, m),  # never read
        lambda m: m.mT,
        lambda m: m[::2, ::2],
        lambda m: m[20:, 20:].mT,
    ]
    for view in views:
        m, other = view(a), view(b)
        same_forward(emu, m, [3, 1, 20, 17, 9, 4], [2, 22], 3, group_size=2)
        same_forward(emu, m, range(20), [], 20)
        for name in ELIMINATIONS:
            same_elimination(emu, name, [m], [other], 10, sizes=[2], keep=[3])


@pytest.mark.parametrize("size", [1, 3])
def test_results_do_not_depend_on_the_schedule(size, emu, spd):
    channels = 23
    first, second = readers(channels, [size, 1], spd)
    cov = spd(80)
    for name in ELIMINATIONS:
        runs = [
            eliminate(emu, name, first, second[name], channels, [size, 1], seed=seed)
            for seed in range(3)
        ]
        assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
    x = range(channels * size)
    for y in (range(75, 80), []):
        runs = [forward(emu, cov, x, y, channels, size, seed=seed) for seed in range(3)]
        assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


# ---- ties, twins, constants ----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [6, 140])
def test_ties_go_to_the_lowest_number(channels, emu):
    eye, count = torch.eye(channels + 1, dtype=torch.float64), 6
    x = range(channels)
    for y in ([], [channels]):
        assert forward(emu, eye, x, y, count)[0].tolist() == list(range(count))
    for name in ELIMINATIONS:
        order = eliminate(emu, name, [eye], [2 * eye], count, [1])[0]
        assert order.tolist() == list(range(count))
        order = eliminate(emu, name, [eye], [2 * eye], count, [1], [0])[0]
        assert order.tolist() == list(range(1, count + 1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_redundant_variables(size, emu, spd):
    base, n = spd(12 * size + 4), 12 * size
    twice = [*range(n), *range(n), *range(n, n + 4)]  # every group once more
    cov = base[twice][:, twice]
    for y in (range(2 * n, 2 * n + 4), []):
        expected = same_forward(emu, cov, range(2 * n), y, 24, group_size=size)
        assert (expected.gains[12:] == (0 if y else -torch.inf)).all()
    # within a group only one variable is redundant
    same_forward(emu, cov, range(n - 1, n + 3), [2 * n], 2, group_size=2)
    # a group that adds nothing is in from the start
    same_forward(emu, cov, range(2 * n), [2 * n], 20, group_size=size, start=[0, 12])


def test_far_more_variables_than_samples(emu):
    x = torch.randn(5, 150, dtype=torch.float64)
    result = same_forward(emu, x.mT @ x, range(150), [], 150)
    assert (result.gains[5:] == -torch.inf).all()


def test_constants(emu, spd):
    cov = spd(20)
    cov[3, :] = cov[:, 3] = 0
    cov[18, :] = cov[:, 18] = 0
    for y in (range(15, 20), []):
        assert same_forward(emu, cov, range(15), y, 15).order[-1] == 3
    same_forward(emu, cov, range(4), [10], 2, group_size=2)
    same_forward(emu, cov, range(4), [18, 10], 4, noise_variance=0.5)
    same_forward(emu, cov, range(4), [18], 4)


# ---- refusals by info ----------------------------------------------------------------------------


def test_an_infinite_information_is_refused(emu, spd):
    n = 70
    cov, w = spd(n), torch.randn(3, n, dtype=torch.float64)
    joint = torch.cat([torch.cat([cov, cov @ w.mT], 1), torch.cat([w @ cov, w @ cov @ w.mT], 1)])
    y = range(n, n + 3)
    # n - 3 groups and the three outputs determine all the others: noise decides before
    order, gains, info = forward(emu, joint, range(n), y, n)
    assert info == n - 2
    assert (order[n - 3 :] == -1).all()
    assert gains[n - 3 :].isnan().all()
    expected = ops.forward_selection(joint, range(n), y, n - 3)
    assert_same((order[: n - 3], gains[: n - 3], expected.info), expected, 1e-6)
    # all y, no noise: y is a function of itself
    for count in (0, 1):
        expected = same_forward(emu, joint, [0, 1], [*range(2, n), *y], count)
        assert expected.info == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_what_is_no_covariance_is_refused(bad, emu, spd):
    n, spot = 12, 3
    cov, eye, good = spd(n), torch.eye(n, dtype=torch.float64), spd(n)
    cov[spot, spot] = bad
    for y in ([], [n - 1]):
        assert same_forward(emu, cov, range(n - 1), y, n - 1).info == 1
    assert same_forward(emu, cov, range(spot), [spot], 2).info == 1
    assert same_forward(emu, cov, range(n), [], 3, start=[0, spot]).info == 1
    assert same_forward(emu, cov, range(n), [], 0, start=[spot, 0]).info == 1
    same_forward(emu, cov, [i for i in range(n) if i != spot], [], n - 1)  # never read
    for name in ELIMINATIONS:
        assert same_elimination(emu, name, [cov], [eye], n, sizes=[1]).info == 1
        assert same_elimination(emu, name, [cov], [good], n - 1, sizes=[1], keep=[spot]).info == 0
        # one layer of three is enough
        layers = [good, cov, good], [eye] * 3
        assert same_elimination(emu, name, *layers, n, sizes=[1] * 3).info == 1


@pytest.mark.parametrize(("n", "bad"), [(9, torch.inf), (9, torch.nan), (70, torch.nan)])
def test_the_step_that_depends_on_it_is_refused(bad, n, emu, spd):
    cov = spd(n)
    cov[6, 2] = bad
    eye = 3 * torch.eye(n, dtype=torch.float64)
    assert same_forward(emu, cov, range(n), [], n).info > 1
    for name in ELIMINATIONS:
        assert same_elimination(emu, name, [cov], [eye], n, sizes=[1]).info > 1
        assert same_elimination(emu, name, [eye], [cov], n, sizes=[1]).info > 1


def test_a_singular_precision_is_refused(emu):
    samples = torch.randn(7, 20, dtype=torch.float64)
    singular, eye = samples.mT @ samples, torch.eye(20, dtype=torch.float64)
    for name in ELIMINATIONS:
        assert same_elimination(emu, name, [singular], [eye], 20, sizes=[1]).info == 8
    result = same_elimination(emu, "backward_elimination", [eye], [singular], 20, sizes=[1])
    assert result.info == 8


def test_an_infinite_loss_is_refused(emu):
    tiny, huge = 1e-200 * torch.eye(9, dtype=torch.float64), 1e200 * torch.eye(9).double()
    huge[4, 4] = 1
    result = same_elimination(emu, "obs_elimination", [tiny], [huge], 9, sizes=[1])
    assert (result.info, result.order[0]) == (2, 4)
    same_elimination(emu, "backward_elimination", [tiny], [huge], 9, sizes=[1])


def test_arrays_of_any_kind(emu):
    """Results are NumPy's, of the documented types."""
    order, values, info = emu.forward_selection(np.eye(3), [0, 2], [], 1, 1, [], 0.0, 0)
    assert (order.dtype, values.dtype, info.dtype) == (np.int64, np.float64, np.int32)
