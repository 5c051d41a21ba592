"""cholesky, logdet and submatrix_logdet on a GPU."""

from __future__ import annotations

import pytest
import torch

from gpu_checks import F32, F64, Case, close, definite, gaps, gpu_tests, need
from infoslice import ops

BOUNDS = {F64: 1e-12, F32: 2e-5}
ORDERS = [1, 2, 7, 16, 31, 32, 33, 64, 65, 127, 200, 257]


def case(op, title, make, dtype, failing=False):
    title = f"{title} {str(dtype).removeprefix('torch.')}"
    return Case(op, title, make, BOUNDS[dtype], against_reference=not failing)


def matrices(*batch, d, dtype):
    return lambda: [definite(*batch, d=d, dtype=dtype)]


def failing(d, dtype):
    """The second, third and fourth of five matrices fail, in their first, middle and last row."""

    def make():
        a = definite(5, d=d, dtype=dtype)
        a[1, 0, 0] = -1
        a[2, d // 2, d // 2] = torch.nan
        a[3, d - 1, 0] = torch.inf
        return [a]

    return make


def upper_is_not_read(d, dtype):
    def make():
        above = torch.ones(d, d, dtype=torch.bool).triu(1)
        return [definite(3, d=d, dtype=dtype).masked_fill(above, torch.nan)]

    return make


def sets(n, *batch, k, dtype):
    return lambda: [definite(d=n, dtype=dtype), torch.rand(*batch, n).argsort(-1)[..., :k]]


def repeated(dtype):
    """The second set holds a variable twice: the minor up to its second place fails."""
    index = torch.tensor([[0, 1, 2, 3], [4, 2, 4, 1], [5, 3, 1, 0]])
    return lambda: [definite(d=6, dtype=dtype), index]


CASES = []
for dtype in (F64, F32):
    for op in ("cholesky", "logdet"):
        CASES += [case(op, f"[3, {d}, {d}]", matrices(3, d=d, dtype=dtype), dtype) for d in ORDERS]
        CASES += [
            case(op, "one of order 600", matrices(d=600, dtype=dtype), dtype),
            case(op, "[2, 3, 20, 20]", matrices(2, 3, d=20, dtype=dtype), dtype),
            case(op, "[2000, 12, 12]", matrices(2000, d=12, dtype=dtype), dtype),
            case(op, "none", lambda dtype=dtype: [torch.empty(0, 5, 5, dtype=dtype)], dtype),
            case(op, "upper triangle NaN", upper_is_not_read(40, dtype), dtype),
            case(op, "strides", lambda dtype=dtype: [gaps(definite(2, d=9, dtype=dtype))], dtype),
            case(op, "transposed", lambda dtype=dtype: [definite(4, d=35, dtype=dtype).mT], dtype),
        ]
        CASES += [
            case(op, f"failures of order {d}", failing(d, dtype), dtype, failing=True)
            for d in (4, 20, 32, 33, 90, 250)
        ]
    CASES += [
        case("submatrix_logdet", f"{k} of {n}", sets(n, 50, k=k, dtype=dtype), dtype)
        for n, k in [(1, 1), (40, 3), (40, 33), (90, 90)]
    ]
    CASES += [
        case("submatrix_logdet", "[2, 3] sets", sets(30, 2, 3, k=9, dtype=dtype), dtype),
        case("submatrix_logdet", "5000 sets", sets(64, 5000, k=5, dtype=dtype), dtype),
        case("submatrix_logdet", "repeated", repeated(dtype), dtype, failing=True),
    ]

test_cases = gpu_tests(CASES)


@pytest.mark.gpu
def test_an_index_out_of_range_is_told_by_info():
    cov, index = definite(d=6), torch.tensor([[0, 1], [2, 6], [3, 4], [-1, 0]])
    value, info = (r.cpu() for r in ops.submatrix_logdet(cov.cuda(), index.cuda()))
    assert info.tolist() == [0, -1, 0, -1]
    assert value.isnan().tolist() == [False, True, False, True]
    close(value[[0, 2]], ops.submatrix_logdet(cov, index[[0, 2]]).logdet, 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("op", [ops.cholesky, ops.logdet])
def test_gradients(op):
    a = definite(2, d=6)
    grads = []
    for device in ("cpu", "cuda"):
        leaf = a.to(device).requires_grad_()
        op(leaf)[0].square().sum().backward()
        grads.append(leaf.grad.cpu())
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_of_logdet():
    d, batch = 32, 2**31 // 1024 + 54321
    need(batch * d * d * 4 * 1.2 + 2e9)
    one = torch.eye(d, device="cuda") + 0.1
    scales = torch.rand(batch, device="cuda") + 0.5
    a = one * scales[:, None, None]
    a[-1, 7, 7] = -1
    value, info = ops.logdet(a)
    assert info[-1] == 8
    assert value[-1].isnan()
    assert not info[:-1].any()
    true = torch.linalg.slogdet(one.double())[1] + d * scales.double().log()
    close(value[:-1].cpu(), true[:-1].cpu(), 1e-5)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_of_cholesky():
    d, batch = 160, 2**31 // 160**2 + 11
    need(2 * batch * d * d * 4 + 2e9)
    one = definite(d=d).cuda()
    a = one.float().expand(batch, d, d).contiguous()
    scales = torch.tensor([1.0, 4.0, 9.0], device="cuda")
    a[-3:] *= scales[:, None, None]
    factor, info = ops.cholesky(a)
    assert not info.any()
    true = torch.linalg.cholesky(one) * scales.sqrt()[:, None, None]
    close(factor[-3:].cpu(), true.cpu(), 2e-5)
    assert (factor[batch // 2] == factor[0]).all()
