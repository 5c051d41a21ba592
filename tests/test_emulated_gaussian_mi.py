"""The CUDA kernels of Gaussian information on the CPU emulation, against the CPU op and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emulation import COMPILER
from information import EVERY, GROUPED, call, linear_layer
from infoslice import reference

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)


def information(
    emu: Any,
    name: str,
    cov: torch.Tensor,
    x: list[int],
    y: list[int],
    group_size: int = 1,
    noise_variance: float = 0.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    whole = name == "gaussian_mi"
    flat = cov.reshape(-1, *cov.shape[-2:]).contiguous().numpy()
    kind, size = ("marginal_mi", len(x)) if whole else (name, group_size)
    *results, _ = emu.information(kind, flat, x, y, size, noise_variance, seed)
    groups = () if whole else (len(x) // size,)
    nats, info = (torch.from_numpy(r).reshape((*cov.shape[:-2], *groups)) for r in results)
    return nats, info


def check(
    emu: Any,
    name: str,
    cov: torch.Tensor,
    x: list[int],
    y: list[int],
    group_size: int = 1,
    noise_variance: float = 0.0,
    condition: float = 100.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the CPU op: info, and nats as exactly as the condition lets them be."""
    args = (name, cov, x, y, group_size)
    nats, info = information(emu, *args, noise_variance, seed)
    expected = call(*args, noise_variance=noise_variance)
    assert nats.dtype == expected.nats.dtype
    assert nats.shape == expected.nats.shape
    assert torch.equal(info, expected.info)
    assert torch.equal(nats.isnan(), info != 0)
    bound = 20 * len(x + y) * 2.3e-16 * condition
    rounding = torch.finfo(cov.dtype).eps
    torch.testing.assert_close(nats, expected.nats, rtol=rounding, atol=bound, equal_nan=True)
    return nats, info


def without(cov: torch.Tensor, *variables: int) -> torch.Tensor:
    """The covariance with some variables constants."""
    cov = cov.clone()
    for v in variables:
        cov[..., v, :] = cov[..., :, v] = 0
    return cov


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("nx", "ny", "group_size"),
    [
        (1, 1, 1),
        (2, 1, 1),
        (1, 31, 1),
        (31, 2, 1),
        (33, 64, 1),
        (66, 9, 1),
        (6, 5, 2),
        (9, 70, 3),
        (6, 5, 6),
        (34, 33, 17),
        (36, 4, 9),
        (130, 3, 65),
    ],
)
def test_sizes(emu, name, nx, ny, group_size, dtype, spd):
    n = nx + ny + 3
    cov = spd(n, 100.0, (3,)).to(dtype)  # more than the small grid of this build has blocks for
    spoilt = torch.where(torch.ones(n, n).triu(1).bool(), torch.nan, cov)
    order = torch.randperm(n).tolist()
    check(emu, name, spoilt, order[:nx], order[nx : nx + ny], group_size, seed=n)


@pytest.mark.parametrize("name", GROUPED)
def test_either_order_of_sorted_variables(emu, name, spd):
    """Tiles are read along the rows of cov, or across."""
    cov, low, high = spd(81, 100.0, (2,)), list(range(40)), list(range(40, 81))
    check(emu, name, cov, low, high, 4)
    check(emu, name, cov, low, high)
    check(emu, name, cov, high, low)
    check(emu, name, cov, low[::-1], high[::-1], 20)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 50.0])
@pytest.mark.parametrize("name", EVERY)
def test_reference_agrees(emu, name, noise, spd):
    cov, x, y = spd(24, 100.0, (2, 2)), [3, 1, 0, 7, 20, 21], [2, 4, 8, 23]
    for group_size in [1, 2, 3, 6]:
        options = {"noise_variance": noise}
        grouped = options if name == "gaussian_mi" else {**options, "group_size": group_size}
        nats, info = check(emu, name, cov, x, y, group_size, noise)
        expected = getattr(reference, name)(cov, x, y, **grouped)
        torch.testing.assert_close(nats, expected.nats, rtol=1e-11, atol=1e-12)
        assert not info.any()


@pytest.mark.parametrize(
    ("name", "nx", "ny", "group_size"),
    [
        ("marginal_mi", 40, 40, 1),  # items
        ("conditional_mi", 40, 10, 1),
        ("marginal_mi", 40, 30, 40),  # groups
        ("conditional_mi", 96, 48, 48),
        ("pairwise_mi", 40, 30, 40),
    ],
)
def test_many_passes(emu, name, nx, ny, group_size, spd):
    """This build has memory for a few matrices at a time."""
    cov, y, x = spd(nx + ny, 100.0, (3,)), list(range(ny)), list(range(ny, nx + ny))
    nats, _ = check(emu, name, cov, x, y, group_size)
    alone, _ = information(emu, name, cov[2], x, y, group_size)
    assert torch.equal(nats[2], alone)


def test_the_workspace_is_what_the_header_says(emu, spd):
    n, x, y = 12, list(range(8)), list(range(8, 12))
    cov = spd(n, 10.0, (2,)).numpy()
    order, places = 4 * 12, 12
    expected = {
        ("marginal_mi", 1): 2 * (8 * (4 * 12 + 4 + places) + 4),
        ("marginal_mi", 4): 2 * (8 * (4 * 12 + 4 + places) + 4) + 4 * (8 * (4 * 9) + 8),
        ("conditional_mi", 1): 2 * (8 * (12 * 20 + 12) + 4),
        ("conditional_mi", 4): 2 * (8 * (12 * 20 + 12) + 4) + 4 * (8 * (4 * 9) + 8),
        ("pairwise_mi", 1): 2 * 8 * places,
        ("pairwise_mi", 4): 2 * 8 * places + 4 * (8 * (4 * 9) + 8),
    }
    for (name, group_size), bytes_ in expected.items():
        assert emu.information(name, cov, x, y, group_size, 0.0, 0)[2] == bytes_ + order, name


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("condition", [1.0, 1e6])
def test_conditions(emu, name, condition, spd):
    cov, x, y = spd(40, condition), list(range(24)), list(range(24, 40))
    for group_size in (1, 4):
        check(emu, name, cov, x, y, group_size, 1e-8, condition)


@pytest.mark.parametrize("name", ["gaussian_mi", "marginal_mi", "pairwise_mi"])
def test_constants_carry_no_information(emu, name, spd):
    cov, x, y = spd(11, 20.0), [0, 1, 2, 3, 8, 9], [5, 6, 7]
    for dead in [(2,), (2, 3), (6,), (0, 6), (5, 6, 7), (0, 1, 2, 3, 8, 9), (3, 5, 8)]:
        batch = torch.stack([cov, without(cov, *dead), cov])
        for group_size in (1, 2, 3):
            for noise in (0.0, 0.5):
                nats, info = check(emu, name, batch, x, y, group_size, noise)
                assert not info.any()
                assert torch.equal(nats[0], nats[2])
    gone = without(cov, *x)
    gone[5, 5] = torch.nan  # but y is none: X knows nothing of it all the same
    check(emu, name, gone, x, y, 3)
    check(emu, name, gone, x, y)


def test_a_constant_makes_the_conditional_singular(emu, spd):
    dead = without(spd(7, 20.0), 1)
    for group_size in (1, 2):
        _, info = check(emu, "conditional_mi", dead, [0, 1, 2, 3], [5, 6], group_size)
        assert (info == 2).all()


@pytest.mark.parametrize("name", EVERY)
def test_no_variance_but_covariance(emu, name, spd):
    cov = spd(8, 5.0)
    cov[1, 1] = 0
    for group_size in (1, 2, 4):
        check(emu, name, cov, [0, 2, 1, 3], [4, 5], group_size)
        check(emu, name, cov, [0, 2, 6, 3], [5, 1], group_size)


def test_info_names_the_variable(emu, spd):
    cov = spd(8, 5.0)
    twin = cov.clone()  # 6 becomes twice 1
    twin[6, :] = 2 * twin[1, :]
    twin[:, 6] = 2 * twin[:, 1]
    twin[6, 6] = 4 * twin[1, 1]
    for name, x, y, group_size, expected in [
        ("marginal_mi", [0, 6, 3], [2, 1], 1, [0, 3, 0]),
        ("marginal_mi", [0, 3, 5, 6], [2, 1], 2, [0, 4]),
        ("marginal_mi", [0, 3], [1, 2, 6], 1, [3, 3]),
        ("marginal_mi", [0, 3, 1, 6], [2, 4], 2, [0, 4]),
        ("marginal_mi", [0, 6], [2, 1], 2, [4]),
        ("conditional_mi", [0, 1, 6], [2], 1, [3, 3, 3]),
        ("conditional_mi", [0, 6], [2, 1], 1, [4, 4]),
        ("conditional_mi", [0, 6], [2, 1], 2, [4]),
        ("pairwise_mi", [0, 6], [2, 1], 1, [0, 3]),
        ("pairwise_mi", [0, 6], [1, 2], 1, [0, 2]),
        ("pairwise_mi", [0, 3, 6, 5], [2, 1], 2, [0, 4]),
        ("pairwise_mi", [0, 3, 1, 6], [2], 2, [0, 2]),
    ]:
        _, info = check(emu, name, twin, x, y, group_size)
        assert info.tolist() == expected


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_deterministic_relations_are_told_and_never_infinite(emu, scale, spd):
    cov, _, _, x, y, _ = linear_layer(5, 5, 0.0, spd, condition=3.0)
    for name in ("gaussian_mi", "marginal_mi", "conditional_mi"):
        _, info = information(emu, name, cov * scale, x, y)
        assert (info > 0).all(), name
        for group_size in (1, 5):
            nats, info = information(emu, name, cov * scale, x, y, group_size, 1e-9 * scale)
            assert not info.any()
            assert nats.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
@pytest.mark.parametrize("name", EVERY)
def test_one_bad_matrix_does_not_touch_the_others(emu, name, bad, spd):
    cov = spd(6, 5.0, (3,))
    for group_size in (1, 2):
        good, _ = information(emu, name, cov, [0, 1], [2, 3], group_size)
        for row, column in [(0, 0), (1, 0), (2, 0), (3, 1), (3, 3)]:
            if bad == -1.0 and row != column:
                continue
            spoilt = cov.clone()
            spoilt[1, row, column] = bad
            nats, info = check(emu, name, spoilt, [0, 1], [2, 3], group_size)
            if group_size == 2:  # of one variable, nothing reads a covariance within x
                assert (info[1] > 0).all()
            assert torch.equal(nats[[0, 2]], good[[0, 2]])
        spoilt = cov.clone()
        spoilt[1, 5, :] = bad  # a variable that is not asked for
        assert torch.equal(information(emu, name, spoilt, [0, 1], [2, 3], group_size)[0], good)


def test_never_negative(emu):
    for scale in [1e-9, 1e-5, 1.0]:
        cross = scale * torch.randn(4, 12, 12, dtype=torch.float64) / 12
        cov = torch.eye(12, dtype=torch.float64) + cross @ cross.mT
        for name in EVERY:
            nats, info = information(emu, name, cov, list(range(8)), list(range(8, 12)), 4)
            assert not info.any()
            assert nats.min() >= (-1e-15 if name == "conditional_mi" else 0.0)
            nats, _ = information(emu, name, cov, list(range(8)), list(range(8, 12)))
            assert nats.min() >= 0.0


def test_small_informations_are_exact(emu):
    for rho in [0.0, 1e-9, 1e-4, 0.3, -0.7, 0.999999]:
        cov = torch.tensor([[4.0, 6 * rho], [6 * rho, 9.0]], dtype=torch.float64)
        for name in EVERY:
            nats, _ = information(emu, name, cov, [0], [1])
            np.testing.assert_allclose(nats.numpy(), -0.5 * np.log1p(-(rho**2)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GROUPED)
def test_results_do_not_depend_on_the_schedule(emu, name, dtype, spd):
    cov, x, y = spd(60, 100.0, (3,)).to(dtype), list(range(40)), list(range(40, 60))
    for group_size in (1, 2, 20):
        first = information(emu, name, cov, x, y, group_size)
        for seed in range(1, 3):
            again = information(emu, name, cov, x, y, group_size, seed=seed)
            assert torch.equal(first[0], again[0])
            assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("name", GROUPED)
def test_empty_batches(emu, name):
    nats, info = information(emu, name, torch.empty(0, 6, 6), [0, 1, 2, 3], [4], 2)
    assert nats.shape == info.shape == (0, 2)
