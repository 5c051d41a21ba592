"""precision_diagonal and precision_blocks against inverses of NumPy, SciPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from infoslice import ops, reference

ORDERS = [1, 2, 3, 8, 16, 31, 32, 33, 64, 65, 127, 128, 129]
DTYPES = [torch.float64, torch.float32]


def divisors(d: int) -> list[int]:
    return [b for b in range(1, d + 1) if d % b == 0]


def blocks_of(inverse: np.ndarray, b: int) -> np.ndarray:
    starts = range(0, inverse.shape[-1], b)
    return np.stack([inverse[..., i : i + b, i : i + b] for i in starts], -3)


def assert_near_inverse(actual, expected, d: int, condition: float, dtype: torch.dtype) -> None:
    """Computed in float64 whatever the dtype: 4 d eps cond, and the rounding of the result."""
    bound = 4 * d * 2.3e-16 * condition + torch.finfo(dtype).eps
    error = np.abs(np.asarray(actual, dtype=np.float64) - expected).max()
    assert error <= bound * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", ORDERS)
def test_orders_batches_and_blocks(d, dtype, spd):
    for batch in [(), (2, 3)]:
        a = spd(d, 100.0, batch).to(dtype)
        inverse = np.linalg.inv(a.double().numpy())
        diagonal, info = ops.precision_diagonal(a)
        assert diagonal.shape == a.shape[:-1]
        assert diagonal.dtype == dtype
        assert info.shape == batch
        assert info.dtype == torch.int32
        assert not info.any()
        expected = np.diagonal(inverse, axis1=-2, axis2=-1)
        assert_near_inverse(diagonal, expected, d, 100.0, dtype)
        for b in divisors(d):
            blocks, info = ops.precision_blocks(a, b)
            assert blocks.shape == (*batch, d // b, b, b)
            assert not info.any()
            assert torch.equal(blocks, blocks.mT)
            assert_near_inverse(blocks, blocks_of(inverse, b), d, 100.0, dtype)


def test_a_thousand(spd):
    a = spd(1000, 1e3)
    inverse = scipy.linalg.inv(a.numpy())
    assert_near_inverse(ops.precision_diagonal(a).diagonal, inverse.diagonal(), 1000, 1e3, a.dtype)
    blocks = ops.precision_blocks(a, 25).blocks
    assert_near_inverse(blocks, blocks_of(inverse, 25), 1000, 1e3, a.dtype)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conditions(dtype, condition, spd):
    a = spd(48, condition, (3,)).to(dtype)
    if dtype == torch.float32 and condition == 1e6:
        a = a + 1e-5 * torch.eye(48)
    # The judge inverts the very entries of a, in the format of the op's arithmetic.
    low = a.double().tril()
    inverse = np.linalg.inv((low + low.tril(-1).mT).numpy())
    diagonal = ops.precision_diagonal(a).diagonal
    expected = np.diagonal(inverse, axis1=-2, axis2=-1)
    assert_near_inverse(diagonal, expected, 48, condition, dtype)
    assert_near_inverse(
        ops.precision_blocks(a, 6).blocks, blocks_of(inverse, 6), 48, condition, dtype
    )


def test_independent_judges(spd):
    a = spd(30, 100.0, (4,))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(a))
    diagonal = ops.precision_diagonal(a).diagonal
    torch.testing.assert_close(diagonal, inverse.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(diagonal, reference.precision_diagonal(a).diagonal)
    for b in divisors(30):
        torch.testing.assert_close(
            ops.precision_blocks(a, b).blocks, reference.precision_blocks(a, b).blocks
        )
    for i in range(30):  # what the other variables leave unexplained of variable i
        rest = [j for j in range(30) if j != i]
        explained = a[:, i, rest].unsqueeze(1) @ torch.linalg.solve(
            a[:, rest][:, :, rest], a[:, rest, i].unsqueeze(2)
        )
        torch.testing.assert_close(1 / diagonal[:, i], a[:, i, i] - explained[:, 0, 0])


def test_scale_and_order(spd):
    a = spd(12, 40.0)
    diagonal = ops.precision_diagonal(a).diagonal
    scales = torch.logspace(-6, 6, 12, dtype=torch.float64)
    scaled = scales[:, None] * a * scales
    torch.testing.assert_close(ops.precision_diagonal(scaled).diagonal, diagonal / scales**2)
    order = torch.randperm(12)
    torch.testing.assert_close(ops.precision_diagonal(a[order][:, order]).diagonal, diagonal[order])


def test_only_the_lower_triangle_is_read_in_any_strides(spd):
    base = spd(24, 10.0, (4, 6))
    spoilt = torch.where(torch.ones(24, 24).triu(1).bool(), torch.nan, base)
    functions = [lambda a: ops.precision_diagonal(a)[0], lambda a: ops.precision_blocks(a, 4)[0]]
    for f in functions:
        assert torch.equal(f(spoilt), f(base))
        for a in (base.mT, base[::2, 1::3], base[..., ::2, ::2], base[0, 0].expand(5, 24, 24)):
            before = a.clone()
            assert torch.equal(f(a), f(a.contiguous()))
            assert torch.equal(torch.from_numpy(f(a.numpy())), f(a))
            assert torch.equal(a, before)


@pytest.mark.parametrize("d", [1, 6, 66])
def test_the_first_bad_minor_is_named(d, spd):
    for k in sorted({1, d // 2 + 1, d}):
        for bad in (-1.0, torch.nan, torch.inf):
            a = spd(d, 10.0, (3,))
            good = ops.precision_diagonal(a).diagonal
            a[1, k - 1, k - 1] = bad
            for values, info in (ops.precision_diagonal(a), ops.precision_blocks(a, d)):
                assert info.tolist() == [0, k, 0]
                assert values[1].isnan().all()
                assert values[[0, 2]].isfinite().all()
            assert torch.equal(ops.precision_diagonal(a).diagonal[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-39), (torch.float64, 1e-309)])
def test_what_the_dtype_cannot_hold_is_told(dtype, tiny):
    a = torch.eye(3, dtype=dtype).repeat(2, 1, 1)
    a[1, 2, 2] = tiny  # the inverse is beyond the largest number
    for values, info in (ops.precision_diagonal(a), ops.precision_blocks(a, 3)):
        assert info.tolist() == [0, 4]
        assert values[1].isnan().all()
        assert values[0].isfinite().all()


def test_results_do_not_depend_on_threads(spd):
    a = spd(48, 100.0, (60,))
    one = ops.precision_diagonal(a).diagonal, ops.precision_blocks(a, 8).blocks
    torch.set_num_threads(3)
    try:
        many = ops.precision_diagonal(a).diagonal, ops.precision_blocks(a, 8).blocks
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def test_empty_batches():
    a = torch.empty(0, 2, 6, 6)
    assert ops.precision_diagonal(a).diagonal.shape == (0, 2, 6)
    assert ops.precision_blocks(a, 3).blocks.shape == (0, 2, 2, 3, 3)
    assert ops.precision_blocks(a, 3).info.shape == (0, 2)


@pytest.mark.parametrize(
    ("a", "error", "text"),
    [
        (torch.eye(3)[:2], ValueError, r"square matrices .* got shape \[2, 3\]"),
        (torch.ones(4), ValueError, r"at least 2 dimensions, .* got shape \[4\]"),
        (np.empty((2, 0, 0)), ValueError, r"d >= 1, got shape \[2, 0, 0\]"),
        (torch.eye(2, dtype=torch.float16), TypeError, "float32, float64, got float16"),
        (None, TypeError, "a NumPy array or a torch tensor, got NoneType"),
    ],
)
def test_refusals(a, error, text):
    with pytest.raises(error, match=f"precision_diagonal: a: expected .*{text}"):
        ops.precision_diagonal(a)
    with pytest.raises(error, match=f"precision_blocks: a: expected .*{text}"):
        ops.precision_blocks(a, 1)


@pytest.mark.parametrize("block_size", [0, -2, 4, 7])
def test_blocks_must_tile_the_matrix(block_size, spd):
    text = f"precision_blocks: block_size: expected a divisor of the order 6, got {block_size}"
    for a in (spd(6), spd(6).numpy()):
        with pytest.raises(ValueError, match=text):
            ops.precision_blocks(a, block_size)


def test_a_gradient_is_refused_and_not_cut(spd):
    a = spd(4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"precision_diagonal: a: .* requires grad"):
        ops.precision_diagonal(a)
    with pytest.raises(RuntimeError, match=r"precision_blocks: a: .* requires grad"):
        ops.precision_blocks(a, 2)
    with torch.no_grad():
        assert ops.precision_diagonal(a).diagonal.isfinite().all()
