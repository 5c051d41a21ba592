"""Greedy selection and elimination against their definitions by determinants, and their laws."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from infoslice import ops, reference

ELIMINATIONS = ["backward_elimination", "obs_elimination"]


def readers(channels: int, sizes: list[int], spd, outputs: int = 5, condition: float = 30.0):
    """Of layers that read the channels: precision matrices, and those given Y or W'W."""
    precision = [torch.linalg.inv(spd(channels * r, condition)) for r in sizes]
    precision = [(p + p.mT) / 2 for p in precision]
    weights = [torch.randn(outputs, channels * r, dtype=torch.float64) for r in sizes]
    gram = [w.mT @ w for w in weights]
    given = [p + g / 0.3 for p, g in zip(precision, gram, strict=True)]
    return precision, {"backward_elimination": given, "obs_elimination": gram}


def assert_same(actual, expected, bound: float = 1e-11) -> None:
    assert actual[2].dtype == torch.int32
    assert actual[2].item() == 0
    assert actual[0].dtype == torch.int64
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1].double(), rtol=bound, atol=bound)


# ---- against the definition ---------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [0, 1, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_forward_selection_by_determinants(size, outputs, spd):
    for groups in (1, 5, 9):
        n = groups * size + outputs
        cov, order = spd(n + 2), torch.randperm(n + 2).tolist()
        x, y = order[: groups * size], order[groups * size : n]
        options = {"group_size": size, "noise_variance": 0.1}
        for count in {0, 1, groups // 2, groups}:
            assert_same(
                ops.forward_selection(cov, x, y, count, **options),
                reference.forward_selection(cov, x, y, count, **options),
            )
        start = [groups - 1, 0][: groups - 1]
        assert_same(
            ops.forward_selection(cov, x, y, groups - len(start), start=start, **options),
            reference.forward_selection(cov, x, y, groups - len(start), start=start, **options),
        )


@pytest.mark.parametrize("name", ELIMINATIONS)
@pytest.mark.parametrize("sizes", [[1], [2], [3], [4], [1, 1], [3, 1], [1, 4, 2]], ids=str)
def test_eliminations_by_determinants(sizes, name, spd):
    op, definition = getattr(ops, name), getattr(reference, name)
    for channels in (1, 5, 9):
        first, second = readers(channels, sizes, spd)
        for count in {0, 1, channels // 2, channels}:
            arguments = first, second[name], count
            assert_same(op(*arguments, group_size=sizes), definition(*arguments, group_size=sizes))
        keep = [channels - 1, 0][: channels - 1]
        arguments = first, second[name], channels - len(keep)
        options = {"group_size": sizes, "keep": keep}
        assert_same(op(*arguments, **options), definition(*arguments, **options))


def forward_step_by_step(a: torch.Tensor, b: torch.Tensor | None, size: int, count: int):
    """By downdates of the whole matrices, one group after the other."""
    left, order, gains = list(range(len(a) // size)), [], []
    own = torch.arange(len(a)).view(-1, size)
    for _ in range(count):
        v = own[left]
        blocks = [m[v[:, :, None], v[:, None, :]] for m in (a, b) if m is not None]
        logdets = [torch.linalg.slogdet(block).logabsdet for block in blocks]
        gain = logdets[0] - logdets[1] if len(logdets) == 2 else logdets[0]
        gains.append(gain.max() / 2)
        order.append(left.pop(int(gain.argmax())))
        v = own[order[-1]]
        a, b = (
            m if m is None else m - m[:, v] @ torch.linalg.inv(m[v][:, v]) @ m[v] for m in (a, b)
        )
    return torch.tensor(order), torch.stack(gains)


@pytest.mark.parametrize(
    ("channels", "size"),
    [(63, 1), (64, 1), (65, 1), (66, 1), (129, 1), (200, 1), (33, 2), (70, 3), (23, 9), (3, 70)],
)
def test_many_blocks(channels, size, spd):
    """The panels are full, the matrices shrink, and bands of the triangle end everywhere."""
    n = channels * size
    (a,), second = readers(channels, [size], spd)
    b, g = second["backward_elimination"][0], second["obs_elimination"][0]
    counts = {channels, channels - 1, min(channels, 64 // size + 1)}
    expected_order, expected = forward_step_by_step(a, b, size, channels)
    for count in counts:
        order, losses, info = ops.backward_elimination([a], [b], count, group_size=size)
        assert info.item() == 0
        assert torch.equal(order, expected_order[:count])
        torch.testing.assert_close(losses, -expected[:count], rtol=1e-10, atol=1e-11)
        order, losses, info = ops.obs_elimination([a], [g], count, group_size=size)
        assert info.item() == 0
        removed = order[:, None] * size + torch.arange(size)
        for k in (1, count // 2, count):  # the error of all removals up to there
            v = removed[:k].flatten()
            error = torch.linalg.solve(a[v][:, v], g[v][:, v]).trace()
            torch.testing.assert_close(losses[:k].sum(), error, rtol=1e-9, atol=0)
        assert sorted(order.tolist()) == sorted(set(order.tolist()))
    for y in ([], list(range(n, n + 70)), list(range(n, n + 3))):
        cov = spd(n + len(y))
        x = list(range(n))
        sx, sxy, sy = cov[:n, :n], cov[:n, n:], cov[n:, n:]
        given = sx - sxy @ torch.linalg.solve(sy, sxy.mT) if y else None
        expected_order, expected = forward_step_by_step(sx, given, size, channels)
        for count in counts:
            order, gains, info = ops.forward_selection(cov, x, y, count, group_size=size)
            assert info.item() == 0
            assert torch.equal(order, expected_order[:count])
            torch.testing.assert_close(gains, expected[:count], rtol=1e-10, atol=1e-11)


# ---- laws ---------------------------------------------------------------------------------------


def test_gains_add_up_to_the_information(spd):
    cov, x, y = spd(150), list(range(20, 150)), list(range(20))
    whole = ops.gaussian_mi(cov, x, y, noise_variance=0.2).nats
    for size, start in [(1, []), (2, [3, 60]), (5, [7])]:
        first = [v for g in start for v in x[g * size : (g + 1) * size]]
        begun = ops.gaussian_mi(cov, first, y, noise_variance=0.2).nats if start else 0.0
        options = {"group_size": size, "start": start, "noise_variance": 0.2}
        count = 130 // size - len(start)
        order, gains, _ = ops.forward_selection(cov, x, y, count, **options)
        torch.testing.assert_close(gains.sum(), whole - begun, rtol=1e-11, atol=1e-11)
        assert sorted([*order.tolist(), *start]) == list(range(130 // size))
        assert (gains > 0).all()
    entropies = ops.forward_selection(cov, x, [], 130).gains
    torch.testing.assert_close(2 * entropies.sum(), ops.logdet(cov[20:, 20:]).logdet)
    assert (entropies.diff() <= 1e-12).all()  # submodular: no later gain is larger


def test_losses_add_up(spd):
    sizes = [1, 3]
    first, second = readers(50, sizes, spd)
    given, gram = second["backward_elimination"], second["obs_elimination"]
    losses = ops.backward_elimination(first, given, 50, group_size=sizes).losses
    told = [ops.logdet(b).logdet - ops.logdet(a).logdet for a, b in zip(first, given, strict=True)]
    torch.testing.assert_close(losses.sum(), sum(told) / 2, rtol=1e-11, atol=0)
    losses = ops.obs_elimination(first, gram, 50, group_size=sizes).losses
    errors = [torch.linalg.solve(p, g).trace() for p, g in zip(first, gram, strict=True)]
    torch.testing.assert_close(losses.sum(), sum(errors), rtol=1e-11, atol=0)


def test_obs_is_the_error_of_a_refit(spd):
    cov, w = spd(12), torch.randn(3, 12, dtype=torch.float64)
    precision = torch.linalg.inv(cov)
    order, losses, _ = ops.obs_elimination([precision], [w.mT @ w], 7)
    kept = [c for c in range(12) if c not in order.tolist()]
    refit = w @ cov[:, kept] @ torch.linalg.inv(cov[kept][:, kept])
    rest = w.clone()
    rest[:, kept] -= refit
    torch.testing.assert_close(losses.sum(), (rest @ cov @ rest.mT).trace())
    noisy = precision + 1e-7 * (w.mT @ w)  # much noise on Y: the information is the error
    told, nats, _ = ops.backward_elimination([precision], [noisy], 7)
    assert torch.equal(told, order)
    torch.testing.assert_close(nats, losses * 0.5e-7, rtol=1e-4, atol=0)


def test_what_is_kept_is_given(spd):
    """Channels that stay condition the others: the same as to cut them out of the precision."""
    first, second = readers(20, [2], spd)
    keep, left = [0, 7, 19], [c for c in range(20) if c not in (0, 7, 19)]
    v = (torch.tensor(left)[:, None] * 2 + torch.arange(2)).flatten()
    for name in ELIMINATIONS:
        kept = getattr(ops, name)(first, second[name], 17, group_size=2, keep=keep)
        cut = getattr(ops, name)([first[0][v][:, v]], [second[name][0][v][:, v]], 17, group_size=2)
        assert torch.equal(kept.order, torch.tensor(left)[cut.order])
        assert torch.equal(kept[1], cut[1])


def test_units_and_order_do_not_matter(spd):
    cov, x, y = spd(30), list(range(24)), list(range(24, 30))
    order, gains, _ = ops.forward_selection(cov, x, y, 24)
    units = torch.logspace(-100, 100, 30, dtype=torch.float64)
    scaled = ops.forward_selection(units[:, None] * cov * units, x, y, 24)
    assert_same(scaled, (order, gains), 1e-9)
    shuffled = torch.randperm(24).tolist()
    again = ops.forward_selection(cov, shuffled, y, 24)
    assert [shuffled[g] for g in again.order] == order.tolist()
    torch.testing.assert_close(again.gains, gains, rtol=1e-10, atol=1e-11)


# ---- ties, twins, constants ---------------------------------------------------------------------


@pytest.mark.parametrize("channels", [6, 40, 140])
def test_ties_go_to_the_lowest_number(channels):
    eye = torch.eye(channels + 1, dtype=torch.float64)
    x = list(range(channels))
    assert ops.forward_selection(eye, x, [], channels).order.tolist() == x
    assert ops.forward_selection(eye, x, [channels], channels).order.tolist() == x
    for name in ELIMINATIONS:
        op = getattr(ops, name)
        assert op([eye], [2 * eye], channels + 1).order.tolist() == [*x, channels]
        assert op([eye], [2 * eye], channels, keep=[0]).order.tolist() == [*x[1:], channels]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_repeated_group_tells_nothing_more(size, spd):
    base, n = spd(12 * size + 4), 12 * size
    twice = [*range(n), *range(n), *range(n, n + 4)]  # every group once more
    cov = base[twice][:, twice]
    x, y = list(range(2 * n)), list(range(2 * n, 2 * n + 4))
    order, gains, info = ops.forward_selection(cov, x, y, 24, group_size=size)
    once = ops.forward_selection(
        base, list(range(n)), y=[*range(n, n + 4)], count=12, group_size=size
    )
    assert info.item() == 0
    assert torch.equal(order[:12], once.order)  # of twins the first
    torch.testing.assert_close(gains[:12], once.gains)
    assert order[12:].tolist() == list(range(12, 24))
    assert torch.equal(gains[12:], torch.zeros(12, dtype=torch.float64))
    order, gains, info = ops.forward_selection(cov, x, [], 24, group_size=size)
    assert info.item() == 0
    assert sorted(order[:12].tolist()) == list(range(12))
    assert order[12:].tolist() == list(range(12, 24))
    assert torch.equal(gains[12:], torch.full((12,), -torch.inf, dtype=torch.float64))


def test_constants_come_last(spd):
    cov = spd(20)
    cov[3, :] = cov[:, 3] = 0
    cov[18, :] = cov[:, 18] = 0
    order, gains, info = ops.forward_selection(cov, range(15), range(15, 20), 15)
    assert info.item() == 0
    assert order[-1] == 3
    assert gains[-1] == 0
    alive = [i for i in range(15) if i != 3]
    rest = ops.forward_selection(cov, alive, [15, 16, 17, 19], 14)  # a constant in y is left out
    assert [alive[g] for g in rest.order] == order[:-1].tolist()
    torch.testing.assert_close(rest.gains, gains[:-1])
    order, gains, info = ops.forward_selection(cov, range(15), [], 15)
    assert (order[-1].item(), gains[-1].item(), info.item()) == (3, -np.inf, 0)
    # within a group, only the variable is redundant
    order, gains, info = ops.forward_selection(cov, range(4), [10], 2, group_size=2)
    assert info.item() == 0
    assert (gains > 0).all()


def test_of_twins_one_goes_and_the_other_stays(spd):
    base = spd(10)
    twice = [*range(10), *range(10)]
    cov = base[twice][:, twice] + 1e-6 * torch.eye(20, dtype=torch.float64)
    precision = torch.linalg.inv(cov)
    w = torch.randn(8, 10, dtype=torch.float64)[:, twice]
    for name, second in [
        ("backward_elimination", precision + w.mT @ w / 0.1),
        ("obs_elimination", w.mT @ w),
    ]:
        order, losses, info = getattr(ops, name)([precision], [second], 20)
        assert info.item() == 0
        assert sorted(c % 10 for c in order[:10].tolist()) == list(range(10))
        assert 100 * losses[:10].max() < losses[10:].min()


def test_far_more_variables_than_samples():
    x = torch.randn(5, 300, dtype=torch.float64)
    cov = x.mT @ x
    order, gains, info = ops.forward_selection(cov, range(300), [], 300)
    assert info.item() == 0
    assert sorted(order.tolist()) == list(range(300))
    assert gains[:5].isfinite().all()
    assert (gains[5:] == -torch.inf).all()
    assert order[5:].tolist() == sorted(order[5:].tolist())
    cov += 1e-6 * torch.eye(300, dtype=torch.float64)
    order, gains, info = ops.forward_selection(cov, range(299), [299], 299)
    assert info.item() == 0
    assert gains.min() > -1e-9


# ---- refusals by info ---------------------------------------------------------------------------


def assert_refused(result, step: int) -> None:
    order, values, info = result
    assert info.item() == step
    assert (order[: step - 1] >= 0).all()
    assert values[: step - 1].isfinite().all()
    assert (order[step - 1 :] == -1).all()
    assert values[step - 1 :].isnan().all()


@pytest.mark.parametrize("n", [6, 90])
def test_an_infinite_information_is_refused(n, spd):
    cov = spd(n)
    w = torch.randn(3, n, dtype=torch.float64)
    joint = torch.cat([torch.cat([cov, cov @ w.mT], 1), torch.cat([w @ cov, w @ cov @ w.mT], 1)])
    y = range(n, n + 3)
    # n - 3 groups and the three outputs determine all the others
    result = ops.forward_selection(joint, range(n), y, n)
    assert_refused(result, n - 2)
    assert torch.equal(
        result.order[: n - 3], ops.forward_selection(joint, range(n), y, n - 3).order
    )
    assert ops.forward_selection(joint, range(n), y, n, noise_variance=1e-3).info.item() == 0
    # all y, no noise: y is a function of itself
    assert_refused(ops.forward_selection(joint, [0, 1], [*range(2, n), *y], 1), 1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_what_is_no_covariance_is_refused(bad, spd):
    for n, spot in [(8, 3), (150, 100)]:
        cov = spd(n)
        cov[spot, spot] = bad
        for y in ([], [n - 1]):
            assert_refused(ops.forward_selection(cov, range(n - 1), y, n - 1), 1)
        assert_refused(ops.forward_selection(cov, range(n - 60 * (n > 60) - 5), [spot], 2), 1)
        others = [i for i in range(n) if i != spot]  # never read
        assert ops.forward_selection(cov, others, [], n - 1).info.item() == 0
        for name in ELIMINATIONS:
            op = getattr(ops, name)
            assert_refused(op([cov], [torch.eye(n, dtype=torch.float64)], n), 1)
            kept = op([cov], [spd(n)], n - 1, keep=[spot])
            assert kept.info.item() == 0
    if bad != -1.0:
        for n in (9, 150):
            cov = spd(n)
            cov[6, 2] = bad  # only the lower triangle counts
            result = ops.forward_selection(cov, range(n), [], n)
            step = int(result.info)
            assert step >= 2
            assert_refused(result, step)
            assert {2, 6} & set(result.order.tolist())
            for name in ELIMINATIONS:
                eye = 3 * torch.eye(n, dtype=torch.float64)
                assert getattr(ops, name)([cov], [eye], n).info.item() > 1
                assert getattr(ops, name)([eye], [cov], n).info.item() > 1


def test_a_singular_precision_is_refused(spd):
    samples = torch.randn(7, 20, dtype=torch.float64)
    singular = samples.mT @ samples
    for name in ELIMINATIONS:
        result = getattr(ops, name)([singular], [torch.eye(20, dtype=torch.float64)], 20)
        assert_refused(result, 8)
    assert_refused(ops.backward_elimination([torch.eye(20).double()], [singular], 20), 8)


def test_an_infinite_loss_is_refused():
    tiny, huge = 1e-200 * torch.eye(9, dtype=torch.float64), 1e200 * torch.eye(9).double()
    huge[4, 4] = 1
    result = ops.obs_elimination([tiny], [huge], 9)
    assert_refused(result, 2)
    assert result.order[0] == 4
    assert_refused(ops.backward_elimination([tiny], [huge], 9), 1)


def test_what_start_cannot_hold_is_refused(spd):
    cov = spd(8)
    cov[5, 5] = -1
    assert_refused(ops.forward_selection(cov, range(8), [], 3, start=[5]), 1)
    twin = spd(8)[[0, 1, 2, 3, 4, 5, 6, 0]][:, [0, 1, 2, 3, 4, 5, 6, 0]]
    _, gains, info = ops.forward_selection(twin, range(8), [], 6, start=[0, 7])
    assert info.item() == 0  # the twin adds nothing, but does no harm
    assert gains.isfinite().all()
    assert_refused(ops.forward_selection(twin, [0, 1, 2], [7], 2, start=[0]), 1)  # y is x_0


# ---- types, strides, threads, levels ------------------------------------------------------------


def test_float32_is_computed_in_double(spd):
    cov = spd(90).float()
    precision, gram = torch.linalg.inv(cov.double()).float(), cov + torch.eye(90)
    for op, arguments in [
        (ops.forward_selection, (cov, range(80), range(80, 90), 80)),
        (ops.backward_elimination, ([precision], [precision + gram], 80)),
        (ops.obs_elimination, ([precision], [gram], 80)),
    ]:
        wide = [
            [m.double() for m in a]
            if isinstance(a, list)
            else a.double()
            if isinstance(a, torch.Tensor)
            else a
            for a in arguments
        ]
        for actual, expected in zip(op(*arguments), op(*wide), strict=True):
            assert torch.equal(actual, expected)


def test_strides_triangles_and_numpy(spd):
    base = spd(24, 10.0)
    spoilt = torch.where(torch.ones(24, 24).triu(1).bool(), torch.nan, base)
    wide = spd(48)
    calls = [
        lambda m: ops.forward_selection(m, [3, 1, 20, 17, 9, 4], [2, 22], 3, group_size=2),
        lambda m: ops.forward_selection(m, range(24), [], 24),
        lambda m: ops.backward_elimination([m], [m], 24),
        lambda m: ops.obs_elimination([m], [m], 5, group_size=2, keep=[3]),
    ]
    for call in calls:
        for same, other in zip(call(base), call(spoilt), strict=True):
            assert torch.equal(same, other)
        for m in (base.mT, wide[::2, ::2], wide[24:, 24:].mT):
            for same, other in zip(call(m), call(m.contiguous()), strict=True):
                assert torch.equal(same, other)
    selection = ops.forward_selection(base.numpy(), np.arange(20), (20, 21), 3)
    assert isinstance(selection.order, np.ndarray)
    assert selection.order.dtype == np.int64
    assert selection.gains.dtype == np.float64
    expected = ops.forward_selection(base, torch.arange(20), [20, 21], 3)
    assert selection.order.tolist() == expected.order.tolist()
    for name in ELIMINATIONS:
        op = getattr(ops, name)
        eliminated = op([base.numpy()], [wide[:24, :24].numpy()], 3)
        assert isinstance(eliminated.losses, np.ndarray)
        assert eliminated.order.tolist() == op([base], [wide[:24, :24]], 3).order.tolist()


def cases(*sizes: tuple[int, int]) -> list[tuple[str, tuple, dict]]:
    torch.manual_seed(3)
    result: list[tuple[str, tuple, dict]] = []
    for channels, size in sizes:
        n, options = channels * size, {"group_size": size}
        a = torch.randn(n + 90, 2 * n, dtype=torch.float64)
        cov = a @ a.mT / (2 * n)
        precision = torch.linalg.inv(cov[:n, :n])
        pair = [precision], [precision + cov[:n, :n]]
        x, y, count = list(range(n)), list(range(n, n + 90)), min(channels, 260)
        result.append(("forward_selection", (cov, x, y, count), options))
        result.append(("forward_selection", (cov, x, y[:2], 5), options))
        result.append(("backward_elimination", (*pair, count), options))
        result.append(("obs_elimination", (*pair, count), options))
    return result


def results(calls: list[tuple[str, tuple, dict]]) -> list[torch.Tensor]:
    return [x for name, args, options in calls for x in getattr(ops, name)(*args, **options)]


def test_results_do_not_depend_on_threads():
    calls = cases((260, 1), (1500, 1), (100, 9))  # the larger ones have work to share
    one = results(calls)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(one, results(calls), strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("level", ["v3", "baseline"])
def test_every_cpu_level_chooses_the_same(level, tmp_path):
    calls = cases((260, 1), (100, 3))
    torch.save(calls, tmp_path / "in.pt")
    code = f"""
import torch
from infoslice import ops
calls = torch.load(r"{tmp_path / "in.pt"}")
out = [x for name, args, options in calls for x in getattr(ops, name)(*args, **options)]
torch.save(out, r"{tmp_path / "out.pt"}")
"""
    environment = {**os.environ, "INFOSLICE_CPU_LEVEL": level}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    for expected, actual in zip(results(calls), torch.load(tmp_path / "out.pt"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([0, 1], [2], 3), {}, ValueError, r"count: expected 0 to 2, the groups .* got 3"),
        (([0, 1], [2], -1), {}, ValueError, "count: expected 0 to 2"),
        (([0, 1], [2], 2), {"start": [1]}, ValueError, "count: expected 0 to 1"),
        (([], [2], 0), {}, ValueError, "x: expected at least one index, got none"),
        (([0, 9], [], 0), {}, ValueError, r"x: expected indices in \[0, 6\), got 9"),
        (([0, 0], [], 0), {}, ValueError, "x: expected indices without repetition, got 0 twice"),
        (([0, 1], [1], 0), {}, ValueError, "y: expected indices disjoint from x, got 1 in both"),
        (([0, 1], [], 0), {"start": [2]}, ValueError, r"start: expected indices in \[0, 2\)"),
        (([0, 1], [], 0), {"start": [1, 1]}, ValueError, "start: .*without repetition"),
        (([0, 1, 2], [], 0), {"group_size": 2}, ValueError, "group_size: expected a divisor of"),
        (([0, 1], [], 0), {"group_size": 0}, ValueError, "group_size: expected a divisor of"),
        (([0, 1], [2], 0), {"noise_variance": -1.0}, ValueError, "noise_variance: expected a"),
        (([0, 1], [2], 0), {"noise_variance": np.nan}, ValueError, "noise_variance: expected a"),
        (([0.5], [], 0), {}, TypeError, "x: expected a list of integers"),
        (([0], [], 0), {"start": "a"}, TypeError, "start: expected a list of integers"),
    ],
)
def test_forward_refusals(arguments, options, error, text, spd):
    for cov in (spd(6), spd(6).numpy()):
        with pytest.raises(error, match=f"forward_selection: {text}"):
            ops.forward_selection(cov, *arguments, **options)


@pytest.mark.parametrize("bad", [torch.eye(6)[:5], torch.eye(6)[None], torch.empty(0, 0)])
def test_one_square_matrix(bad):
    for x in (bad, bad.numpy()):
        with pytest.raises(ValueError, match=r"forward_selection: cov: expected square matrices"):
            ops.forward_selection(x, [0], [], 0)
        for name in ELIMINATIONS:
            with pytest.raises(ValueError, match=f"{name}: precision: expected square matrices"):
                getattr(ops, name)([x], [x], 0)
    with pytest.raises(TypeError, match="cov: expected float32 or float64, got float16"):
        ops.forward_selection(torch.eye(3, dtype=torch.float16), [0], [], 0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([], [], 0), {}, ValueError, "precision: expected at least one matrix, got none"),
        (([6], [6, 6], 0), {}, ValueError, "(given_y|gram): expected 1 matrices, got 2"),
        (([6], [4], 0), {}, ValueError, r"(given_y|gram): expected a matrix of order 6"),
        (([6, 4], [6, 4], 0), {}, ValueError, "group_size: expected the same number of channels"),
        (([6], [6], 0), {"group_size": 4}, ValueError, "group_size: expected a divisor of the"),
        (([6], [6], 0), {"group_size": 0}, ValueError, "group_size: expected a divisor of the"),
        (([6], [6], 0), {"group_size": [1, 1]}, ValueError, "group_size: expected one size, or"),
        (([6], [6], 7), {}, ValueError, "count: expected 0 to 6, the channels .* got 7"),
        (([6], [6], 6), {"keep": [1]}, ValueError, "count: expected 0 to 5"),
        (([6], [6], 0), {"keep": [6]}, ValueError, r"keep: expected indices in \[0, 6\), got 6"),
        (([6], [6], 0), {"keep": [1, 1]}, ValueError, "keep: expected indices without"),
        (([6], [6], 0), {"keep": [True, None]}, TypeError, "keep: expected a list of integers"),
    ],
)
@pytest.mark.parametrize("name", ELIMINATIONS)
def test_elimination_refusals(name, arguments, options, error, text, spd):
    first, second = ([spd(d) for d in orders] for orders in arguments[:2])
    op = getattr(ops, name)
    with pytest.raises(error, match=f"{name}: {text}"):
        op(first, second, arguments[2], **options)
    if first:
        with pytest.raises(error, match=f"{name}: {text}"):
            op([m.numpy() for m in first], [m.numpy() for m in second], arguments[2], **options)


def test_one_dtype():
    eye = torch.eye(3)
    with pytest.raises(TypeError, match="gram: expected one dtype, got float32 and float64"):
        ops.obs_elimination([eye], [eye.double()], 1)
    with pytest.raises(TypeError, match="precision: expected float32 or float64, got int64"):
        ops.obs_elimination([eye.long()], [eye], 1)


def test_a_gradient_is_refused_and_not_cut(spd):
    a = spd(4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"forward_selection: cov: .* requires grad"):
        ops.forward_selection(a, [0, 1], [2], 1)
    for name, argument in [("backward_elimination", "given_y"), ("obs_elimination", "gram")]:
        with pytest.raises(RuntimeError, match=f"{name}: {argument}: .* requires grad"):
            getattr(ops, name)([spd(4)], [a], 1)
        with torch.no_grad():
            assert getattr(ops, name)([spd(4)], [a], 1).info.item() == 0
