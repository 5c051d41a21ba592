"""Gaussian information against closed forms, log-determinants and the laws of information."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from information import EVERY, GROUPED, call, linear_layer
from infoslice import ops, reference


def entropy(cov: np.ndarray, variables) -> np.ndarray:
    block = cov[..., np.asarray(variables)[:, None], np.asarray(variables)]
    return np.linalg.slogdet(block)[1] / 2


def judge(name: str, cov: np.ndarray, x, y, group_size: int) -> np.ndarray:
    """By NumPy's LU-based log-determinants of every block there is."""
    x, y = list(x), list(y)

    def information(a, b, given=()):
        a, b, given = list(a), list(b), list(given)
        bare = entropy(cov, given) if given else 0.0
        return (
            entropy(cov, a + given) + entropy(cov, b + given) - entropy(cov, a + b + given) - bare
        )

    groups = [x[i : i + group_size] for i in range(0, len(x), group_size)]
    each = {
        "marginal_mi": lambda g: information(g, y),
        "conditional_mi": lambda g: information(g, y, [i for i in x if i not in g]),
        "pairwise_mi": lambda g: sum(information(g, [j]) for j in y),
    }
    return np.stack([each[name](g) for g in groups], -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("nx", "ny", "group_size"),
    [
        (1, 1, 1),
        (2, 1, 1),
        (1, 31, 1),
        (31, 2, 1),
        (33, 32, 1),
        (6, 5, 2),
        (6, 5, 6),
        (36, 4, 9),
        (18, 33, 3),
        (64, 65, 32),
        (127, 3, 1),
    ],
)
def test_log_determinants_agree(name, nx, ny, group_size, dtype, spd):
    n = nx + ny + 3
    order = torch.randperm(n).tolist()
    x, y = order[:nx], order[nx : nx + ny]
    for batch in [(), (2, 2)]:
        cov = spd(n, 100.0, batch).to(dtype)
        nats, info = call(name, cov, x, y, group_size)
        assert nats.shape == info.shape == (*batch, nx // group_size)
        assert nats.dtype == dtype
        assert info.dtype == torch.int32
        assert not info.any()
        symmetric = cov.double().tril() + cov.double().tril(-1).mT
        expected = judge(name, symmetric.numpy(), x, y, group_size)
        bound = 20 * n * 2.3e-16 * 100 + torch.finfo(dtype).eps * np.abs(expected).max()
        assert np.abs(nats.double().numpy() - expected).max() <= bound
        if name == "marginal_mi":
            whole, info = ops.gaussian_mi(cov, x, y)
            assert whole.shape == info.shape == batch
            expected = judge(name, symmetric.numpy(), x, y, nx)[..., 0]
            bound = 20 * n * 2.3e-16 * 100 + torch.finfo(dtype).eps * np.abs(expected).max()
            assert np.abs(whole.double().numpy() - expected).max() <= bound


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0, 50.0])
def test_reference_agrees(name, noise, spd):
    cov, x, y = spd(24, 100.0, (3,)), [3, 1, 0, 7, 20, 21], [2, 4, 8, 23]
    options = {"noise_variance": noise}
    for group_size in [1, 2, 3, 6]:
        grouped = options if name == "gaussian_mi" else {**options, "group_size": group_size}
        nats, info = getattr(ops, name)(cov, x, y, **grouped)
        expected = getattr(reference, name)(cov, x, y, **grouped)
        torch.testing.assert_close(nats, expected.nats, rtol=1e-11, atol=1e-12)
        assert torch.equal(info, expected.info)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", EVERY)
def test_conditions(name, condition, spd):
    cov, x, y = spd(40, condition), list(range(24)), list(range(24, 40))
    nats, info = call(name, cov, x, y, 4, noise_variance=1e-8)
    noisy = cov + 1e-8 * torch.diag(torch.arange(40) >= 24).double()
    kind, size = ("marginal_mi", 24) if name == "gaussian_mi" else (name, 4)
    expected = judge(kind, noisy.numpy(), x, y, size).reshape(nats.shape)
    assert not info.any()
    assert np.abs(nats.numpy() - expected).max() <= 20 * 40 * 2.3e-16 * condition


def test_two_variables():
    for rho in [0.0, 1e-9, 1e-4, 0.3, -0.7, 0.999999]:
        cov = torch.tensor([[4.0, 6 * rho], [6 * rho, 9.0]], dtype=torch.float64)
        expected = -0.5 * np.log1p(-(rho**2))
        for name in EVERY:
            nats, info = call(name, cov, [0], [1])
            assert not info.any()
            # small informations are exact too: no difference of logarithms
            np.testing.assert_allclose(nats.numpy(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("noise", [1e-6, 0.1, 3.0])
def test_linear_layers(noise, spd):
    cov, sx, w, x, y, noise = linear_layer(12, 7, noise, spd)
    eye = torch.eye(7, dtype=torch.float64)
    whole = 0.5 * torch.logdet(eye + w @ sx @ w.T / noise)
    nats, info = ops.gaussian_mi(cov, x, y, noise_variance=noise)
    torch.testing.assert_close(nats, whole, rtol=1e-9, atol=1e-12)
    assert not info.any()

    # I(X_i; Y | X_-i) = 1/2 log(1 + |w_i|^2 / (s2 [Sx^-1]_ii)), and in groups with the Schur V
    inverse = torch.linalg.inv(sx)
    expected = 0.5 * torch.log1p(w.square().sum(0) / (noise * inverse.diagonal()))
    nats, info = ops.conditional_mi(cov, x, y, noise_variance=noise)
    torch.testing.assert_close(nats, expected, rtol=1e-7, atol=1e-9)
    assert not info.any()
    nats, _ = ops.conditional_mi(cov, x, y, group_size=4, noise_variance=noise)
    expected = torch.stack(
        [
            0.5 * torch.logdet(eye + w[:, p] @ torch.linalg.inv(inverse[p, p]) @ w[:, p].T / noise)
            for p in (slice(0, 4), slice(4, 8), slice(8, 12))
        ]
    )
    torch.testing.assert_close(nats, expected, rtol=1e-7, atol=1e-9)

    # I(X_i; Y) = -1/2 log(1 - r2), r2 = s_iy Sy^-1 s_yi / s_ii
    sy, sxy = w @ sx @ w.T + noise * eye, sx @ w.T
    r2 = (sxy * torch.linalg.solve(sy, sxy.T).T).sum(1) / sx.diagonal()
    torch.testing.assert_close(
        ops.marginal_mi(cov, x, y, noise_variance=noise).nats,
        -0.5 * torch.log1p(-r2),
        rtol=1e-7,
        atol=1e-9,
    )
    rho2 = sxy**2 / (sx.diagonal()[:, None] * sy.diagonal())
    torch.testing.assert_close(
        ops.pairwise_mi(cov, x, y, noise_variance=noise).nats, -0.5 * torch.log1p(-rho2).sum(1)
    )


def test_white_inputs_rank_channels_by_their_weights():
    w = torch.randn(5, 9, dtype=torch.float64)
    joint = torch.cat([torch.cat([torch.eye(9).double(), w.T], 1), torch.cat([w, w @ w.T], 1)])
    nats, _ = ops.conditional_mi(joint, range(9), range(9, 14), noise_variance=0.5)
    torch.testing.assert_close(nats, 0.5 * torch.log1p(w.square().sum(0) / 0.5))
    assert torch.equal(nats.argsort(), w.norm(dim=0).argsort())


def test_the_output_side_is_the_marginal_with_the_sides_changed(spd):
    cov, sx, w, x, y, noise = linear_layer(6, 4, 0.3, spd)
    noisy = cov + noise * torch.diag(torch.arange(10) >= 6).double()
    nats, info = ops.marginal_mi(noisy, y, x)
    eye = torch.eye(4, dtype=torch.float64)
    sy = w @ sx @ w.T + noise * eye
    torch.testing.assert_close(nats, 0.5 * (sy.diagonal() / noise).log(), rtol=1e-9, atol=1e-12)
    assert not info.any()


@pytest.mark.parametrize("name", EVERY)
def test_never_negative(name):
    for scale in [1e-9, 1e-5, 1e-2, 1.0]:
        cross = scale * torch.randn(50, 12, 12, dtype=torch.float64) / 12
        cov = torch.eye(12, dtype=torch.float64) + cross @ cross.mT
        nats, info = call(name, cov, range(8), range(8, 12), 4)
        assert not info.any()
        floor = -1e-15 if name == "conditional_mi" else 0.0
        assert nats.min() >= floor
        if name != "gaussian_mi":
            assert call(name, cov, range(8), range(8, 12)).nats.min() >= 0.0


def test_independent_sides_share_nothing(spd):
    cov = torch.block_diag(spd(5, 50.0), spd(4, 50.0))
    for name in EVERY:
        nats, info = call(name, cov, range(5), range(5, 9), 5)
        assert torch.equal(nats, torch.zeros_like(nats))
        assert not info.any()


def test_symmetry_and_chain_rule(spd):
    cov = spd(15, 80.0, (4,))
    x, y, z = [0, 3, 5, 9], [1, 2, 14], [4, 7]
    whole = ops.gaussian_mi(cov, x, y).nats
    torch.testing.assert_close(ops.gaussian_mi(cov, y, x).nats, whole, rtol=0, atol=1e-12)
    # I(X, Z; Y) = I(X; Y) + I(Z; Y | X)
    both = [*x, *z]
    given = ops.conditional_mi(cov, [*z, *x], y, group_size=2).nats[..., 0]
    torch.testing.assert_close(
        ops.gaussian_mi(cov, both, y).nats, whole + given, rtol=0, atol=1e-12
    )
    assert torch.equal(ops.marginal_mi(cov, x, y, group_size=4).nats[..., 0], whole)
    torch.testing.assert_close(
        ops.conditional_mi(cov, x, y, group_size=4).nats[..., 0], whole, rtol=0, atol=1e-12
    )
    # one by one in a row, each given those before it
    steps = [whole * 0]
    for i in range(4):
        steps.append(ops.gaussian_mi(cov, x[: i + 1], y).nats - sum(steps))
    assert all((step >= -1e-12).all() for step in steps)
    torch.testing.assert_close(sum(steps), whole, rtol=0, atol=1e-12)


def test_noise_only_takes_information_away(spd):
    cov = spd(10, 80.0)
    for name in EVERY:
        last = None
        for noise in [0.0, 0.01, 0.1, 1.0, 1e3]:
            nats = call(name, cov, range(6), range(6, 10), 2, noise_variance=noise).nats
            assert last is None or (nats <= last).all()
            last = nats
        assert last.max() < 1e-2


def test_invertible_maps_of_either_side_change_nothing(spd):
    cov = spd(9, 60.0)
    a = torch.randn(4, 4, dtype=torch.float64) + 3 * torch.eye(4)
    b = torch.randn(5, 5, dtype=torch.float64) + 3 * torch.eye(5)
    eye4, eye5 = torch.eye(4).double(), torch.eye(5).double()
    x, y = range(4), range(4, 9)

    def mapped(m):
        return m @ cov @ m.T

    whole = ops.gaussian_mi(cov, x, y).nats
    for m in (torch.block_diag(a, eye5), torch.block_diag(eye4, b), torch.block_diag(a, b)):
        torch.testing.assert_close(ops.gaussian_mi(mapped(m), x, y).nats, whole, rtol=0, atol=1e-10)
    for name in ("marginal_mi", "conditional_mi"):
        before = call(name, cov, x, y).nats
        after = call(name, mapped(torch.block_diag(eye4, b)), x, y).nats
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
    scales = torch.logspace(-8, 8, 9, dtype=torch.float64)  # units of measurement
    for name in EVERY:
        torch.testing.assert_close(
            call(name, mapped(scales.diag()), x, y).nats,
            call(name, cov, x, y).nats,
            rtol=0,
            atol=1e-11,
        )


def test_permuted_indices_permute_the_scores(spd):
    cov = spd(14, 50.0)
    x, y = [2, 5, 7, 11, 0, 1], [3, 4, 9]
    for name in GROUPED:
        nats = call(name, cov, x, y, 2).nats
        moved = call(name, cov, [11, 7, 1, 0, 5, 2], y[::-1], 2).nats
        torch.testing.assert_close(moved, nats[[1, 2, 0]], rtol=0, atol=1e-12)


def test_a_thousand(spd):
    cov, x, y = spd(1000, 1e3), list(range(600)), list(range(600, 1000))
    inverse = torch.linalg.inv(cov)
    expected = 0.5 * (inverse.diagonal()[:600] / torch.linalg.inv(cov[:600, :600]).diagonal()).log()
    torch.testing.assert_close(
        ops.conditional_mi(cov, x, y).nats, expected, rtol=0, atol=20e3 * 2.3e-16 * 1e3
    )
    sxy = cov[:600, 600:]
    r2 = (sxy * torch.linalg.solve(cov[600:, 600:], sxy.T).T).sum(1) / cov.diagonal()[:600]
    torch.testing.assert_close(
        ops.marginal_mi(cov, x, y).nats, -0.5 * torch.log1p(-r2), rtol=0, atol=20e3 * 2.3e-16 * 1e3
    )


# ---- arrays -----------------------------------------------------------------------------------


def test_only_the_lower_triangle_is_read_in_any_strides(spd):
    base = spd(10, 20.0, (4, 6))
    spoilt = torch.where(torch.ones(10, 10).triu(1).bool(), torch.nan, base)
    for name in EVERY:
        assert torch.equal(
            call(name, spoilt, [0, 8, 3], [1, 2])[0], call(name, base, [0, 8, 3], [1, 2])[0]
        )
        for cov in (base.mT, base[::2, 1::3], base[..., ::2, ::2], base[0, 0].expand(5, 10, 10)):
            before = cov.clone()
            expected = call(name, cov.contiguous(), [0, 3], [1, 2])[0]
            assert torch.equal(call(name, cov, [0, 3], [1, 2])[0], expected)
            from_numpy = call(name, cov.numpy(), [0, 3], [1, 2])[0]
            assert type(from_numpy) is np.ndarray
            assert np.array_equal(from_numpy, expected.numpy())
            assert torch.equal(cov, before)


@pytest.mark.parametrize("name", EVERY)
def test_indices_of_any_kind(name, spd):
    cov = spd(6, 20.0)
    expected = call(name, cov, [0, 2], [4, 5]).nats
    for kind in (tuple, np.array, torch.tensor, lambda v: np.array(v, dtype=np.uint8)):
        assert torch.equal(call(name, cov, kind([0, 2]), kind([4, 5])).nats, expected)
    assert torch.equal(call(name, cov, range(0, 3, 2), range(4, 6)).nats, expected)


def test_float32_is_computed_in_float64(spd):
    cov = spd(40, 1e4).float()
    for name in EVERY:
        nats = call(name, cov, range(30), range(30, 40), 5).nats
        wide = call(name, cov.double(), range(30), range(30, 40), 5).nats
        assert torch.equal(nats, wide.float())


def test_results_do_not_depend_on_threads(spd):
    cov = spd(60, 100.0, (40,))
    for name in EVERY:
        one = call(name, cov, range(40), range(40, 60), 4)
        torch.set_num_threads(3)
        try:
            many = call(name, cov, range(40), range(40, 60), 4)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(one.nats, many.nats)


def test_empty_batches():
    cov = torch.empty(0, 3, 6, 6)
    assert ops.gaussian_mi(cov, [0], [1]).nats.shape == (0, 3)
    for name in GROUPED:
        assert call(name, cov, [0, 1, 2, 3], [4], 2).nats.shape == (0, 3, 2)
