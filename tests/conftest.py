"""Fixtures shared by all tests: threads, seeds, tolerances, matrices of chosen condition."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from emulation import load_emu
from infoslice import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# max |error| / max |reference| of an op whose inputs have this dtype and whose results are as
# precise as its inputs (float32 for the 16-bit ones): rounding of some hundreds of operations.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,
    torch.float16: 2e-6,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20260713)


@pytest.fixture(scope="session")
def emu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module _emu: the CUDA kernels on the emulation, as functions of NumPy arrays."""
    own = tmp_path_factory.getbasetemp()
    # The processes of one run share a build: the first one makes it, the others find it made.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "emu"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return load_emu(folder / "build")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        reason = "no CUDA device, or a torch without CUDA"
    elif not ops.build_info()["cuda"]:
        reason = "infoslice was built without its CUDA kernels"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """assert_close(actual, reference, dtype): all entries, relative to the largest expected."""

    def check(
        actual: torch.Tensor,
        reference: torch.Tensor,
        dtype: torch.dtype = torch.float64,
        factor: float = 1.0,
    ) -> None:
        assert actual.shape == reference.shape
        actual, reference = actual.detach().double(), reference.detach().double()
        assert actual.isfinite().all()
        scale = reference.abs().max().item() if reference.numel() else 0.0
        error = (actual - reference).abs().max().item() if reference.numel() else 0.0
        bound = factor * TOLERANCES[dtype] * scale
        assert error <= bound, f"max error {error:.3g} > {bound:.3g} (largest entry {scale:.3g})"

    return check


@pytest.fixture
def spd() -> Callable[..., torch.Tensor]:
    """spd(d, condition, batch): symmetric positive definite [*batch, d, d] in float64.

    The eigenvalues run from 1 to 1 / condition in equal steps of their logarithms; the eigenvectors
    are random.
    """

    def make(d: int, condition: float = 1e3, batch: Sequence[int] = ()) -> torch.Tensor:
        q = torch.linalg.qr(torch.randn(*batch, d, d, dtype=torch.float64)).Q
        exponents = (
            torch.linspace(0, 1, d, dtype=torch.float64) if d > 1 else torch.zeros(1).double()
        )
        a = (q * condition**-exponents) @ q.mT
        return (a + a.mT) / 2

    return make
