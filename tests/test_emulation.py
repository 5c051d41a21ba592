"""CUDA kernels on the CPU emulation of CUDA's execution model, and the emulation itself.

The emulation is compiled once per session and kind from tests/native; see csrc/README.md.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from emulation import COMPILER, build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

H100_SHARED = 232448  # bytes of shared memory a block may have

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)


def sanitizer_works(flag: str, folder: Path) -> bool:
    (folder / "try.cpp").write_text("int main() { return 0; }\n")
    compiled = subprocess.run(
        [str(COMPILER), f"-fsanitize={flag}", "try.cpp", "-o", "try"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    ran = compiled.returncode == 0 and subprocess.run([folder / "try"], check=False).returncode == 0
    return ran


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The program `emulated` under a sanitizer."""
    built: dict[str, Path] = {}

    def get(flag: str) -> Path:
        if flag not in built:
            folder = tmp_path_factory.mktemp(flag)
            if not sanitizer_works(flag, folder):
                pytest.skip(f"{COMPILER} cannot build or run with -fsanitize={flag}")
            options = (f"-DINFOSLICE_SANITIZE={flag}", "-DINFOSLICE_PYTHON=OFF")
            built[flag] = build(folder / "build", "emulated", *options)
        return built[flag]

    return get


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


# ---- the kernels ---------------------------------------------------------------------------------

# order, shared memory of a block: a warp per matrix, a block per matrix, many blocks per matrix
PATHS = [(d, H100_SHARED) for d in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)]
PATHS += [(d, 2048) for d in (33, 64, 65, 96, 129)]


def definite(batch: int, d: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(d)
    x = rng.standard_normal((batch, d, 2 * d + 2))
    a = (x @ x.transpose(0, 2, 1) / (2 * d) + 0.1 * np.eye(d)).astype(dtype)
    return np.where(np.triu(np.ones((d, d), dtype=bool), 1), np.nan, a).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "shared"), PATHS)
def test_cholesky_kernels(emu, d, shared, dtype):
    batch = 9 if d <= 32 else 3  # more than the small grids of this build hold at once
    a = definite(batch, d, dtype)
    low = np.tril(np.nan_to_num(a)).astype(np.float64)
    full = low + np.tril(low, -1).transpose(0, 2, 1)
    condition = np.linalg.cond(full).max()
    eps = np.finfo(dtype).eps
    factor, info = emu.cholesky(a, d, shared)
    assert info.tolist() == [0] * batch
    assert factor.dtype == dtype
    assert (np.triu(factor, 1) == 0).all()
    wide = factor.astype(np.float64)
    error = np.abs(wide @ wide.transpose(0, 2, 1) - full).max()
    assert error <= 4 * d * eps * np.abs(full).max()
    assert np.abs(wide - np.linalg.cholesky(full)).max() <= 4 * d * eps * condition
    value, info, workspace = emu.logdet(a, d + 1, shared)
    assert info.tolist() == [0] * batch
    expected = np.linalg.slogdet(full)[1]
    bound = 4 * d * eps * condition + eps * np.abs(expected).max()
    assert np.abs(value - expected).max() <= bound
    assert workspace == (a.nbytes if d > 32 and shared == 2048 else 0)


@pytest.mark.parametrize(("d", "shared"), [(1, H100_SHARED), (9, H100_SHARED), (32, H100_SHARED)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_failures(emu, d, shared, dtype):
    check_failures(emu, d, shared, dtype, sorted({1, d // 2 + 1, d}))


@pytest.mark.parametrize("shared", [H100_SHARED, 2048])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_failures(emu, shared, dtype):
    check_failures(emu, 70, shared, dtype, [1, 32, 33, 64, 70])


def check_failures(emu: Any, d: int, shared: int, dtype: type, minors: list[int]) -> None:
    good = definite(1, d, dtype)
    expected, _ = emu.cholesky(good, 0, shared)
    expected_value, _, _ = emu.logdet(good, 0, shared)
    for k in minors:
        for bad in (-1.0, np.nan, np.inf) if d < 70 else (np.nan,):
            a = np.repeat(good, 4 if d > 32 else 10, 0)
            a[1, k - 1, k - 1] = bad
            factor, info = emu.cholesky(a, k, shared)
            value, info_of_logdet, _ = emu.logdet(a, k, shared)
            assert info.tolist() == info_of_logdet.tolist() == [0, k, *[0] * (len(a) - 2)]
            lower = np.tril(np.ones((d, d), dtype=bool))
            assert np.isnan(factor[1][lower]).all()
            assert (factor[1][~lower] == 0).all()
            assert np.isnan(value[1])
            for other in (0, 2, -1):
                assert np.array_equal(factor[other], expected[0])
                assert value[other] == expected_value[0]


@pytest.mark.parametrize(("d", "shared"), [(5, H100_SHARED), (33, H100_SHARED), (40, 2048)])
def test_results_do_not_depend_on_the_schedule(emu, d, shared):
    a = definite(3, d, np.float32)
    first = emu.cholesky(a, 0, shared)[0], emu.logdet(a, 0, shared)[0]
    for seed in range(1, 5):
        assert np.array_equal(emu.cholesky(a, seed, shared)[0], first[0])
        assert np.array_equal(emu.logdet(a, seed, shared)[0], first[1])


def test_no_matrices_no_launch(emu):
    for shape in [(0, 5, 5), (0, 40, 40), (3, 0, 0)]:
        factor, info = emu.cholesky(np.empty(shape), 0, H100_SHARED)
        assert factor.shape == shape
        assert info.shape == shape[:1]


def test_a_block_has_four_matrices_of_many(emu):
    a = (
        definite(1, 2, np.float32).repeat(300, 0)
        * np.arange(1, 301, dtype=np.float32)[:, None, None]
    )
    value, _, _ = emu.logdet(a, 3, H100_SHARED)
    one = emu.logdet(a[:1], 3, H100_SHARED)[0]
    np.testing.assert_allclose(value, one + 2 * np.log(np.arange(1, 301)), rtol=1e-5)


# ---- the emulation -------------------------------------------------------------------------------

T = np.arange(64)
WARP, LANE = T // 32 * 32, T % 32


def votes_of(warp: int) -> float:
    """The ballot of the multiples of three in a warp, and a half for an `any` that holds."""
    return (sum(1 << t for t in range(32) if (32 * warp + t) % 3 == 0) & 0xFFFF) + 0.5


RIGHT = {
    "reverse": T[::-1],
    "static_sum": np.full(64, T.sum()),
    "shuffle_up": np.where(T % 8 >= 3, T - 3, T),
    "shuffle_down": np.where(T % 8 < 5, T + 3, T),
    "shuffle_xor": T ^ 5,
    "shuffle_index": T // 16 * 16 + 2 * T % 16,
    "votes": np.where(T < 32, votes_of(0), votes_of(1)),
    "half_warps": WARP + np.where(LANE < 16, 15 - LANE, np.minimum(LANE + 3, 31)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_model_executes_right_kernels(emu, name):
    for seed in range(5):
        error, report, values = emu.model(name, 64, seed)
        assert (error, report) == (0, "")
        assert np.array_equal(values, RIGHT[name])


def test_atomics_lose_nothing(emu):
    for seed in range(5):
        error, _, values = emu.model("histogram", 64, seed)
        assert error == 0
        assert values[:5] == [T[T % 5 == r].sum() for r in range(5)]  # noqa: SIM300
        assert values[5:] == [0] * 58 + [32]  # 64 halves


def test_dynamic_shared_memory_starts_as_poison(emu):
    error, _, values = emu.model("uninitialised", 64, 0)
    assert error == 0
    assert np.isnan(values).all()


@pytest.mark.parametrize(
    ("name", "expected"), [("missing_barrier", T[::-1]), ("missing_warp_barrier", T ^ 1)]
)
def test_a_missing_barrier_gives_wrong_results(emu, name, expected):
    results = [emu.model(name, 64, seed)[2] for seed in range(10)]
    assert not any(np.array_equal(values, expected) for values in results)
    # poison, not luck: what was read too early is NaN
    assert all(np.isnan(values).any() for values in results)
    assert len({np.array(values).tobytes() for values in results}) > 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("divergent_barrier", "divergent barrier: threads 0-4 at __syncthreads .*5-63 returned"),
        ("two_barriers", r"divergent barrier: threads 0-4 at .*cu:\d+\); threads 5-63 at"),
        ("missing_lanes", "deadlock: threads 0-6 at a shuffle of lanes 0xffffffff"),
        ("barrier_and_shuffle", "divergent barrier: threads 0-6 at a shuffle .* 7-31 at __sync"),
        ("not_in_own_mask", r"lane \d+ is not in the mask it gives .*model_kernels.cu:\d+"),
        ("reads_outside_mask", "a shuffle reads lane 20, which is not in its mask"),
        ("shared_overrun", "wrote behind the end of 256 bytes of dynamic shared memory"),
    ],
)
def test_broken_kernels_are_reported(emu, name, text):
    for seed in range(3):
        error, report, _ = emu.model(name, 64, seed)
        assert error == 719  # cudaErrorLaunchFailure
        assert report.startswith("model_kernel, block (0, 0, 0): ")
        assert re.search(text, report), report
    # the next launch starts afresh
    assert emu.model("reverse", 64, 0)[:2] == (0, "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_blocks", "a grid of 0 x 1 x 1 blocks"),
        ("too_many_threads", "a block of 1025 threads"),
        ("no_opt_in", "50000 bytes of dynamic shared memory, allowed are 49152"),
    ],
)
def test_launches_a_device_refuses_are_refused(emu, name, text):
    error, report, values = emu.model(name, 64, 0)
    assert error == 9  # cudaErrorInvalidConfiguration
    assert text in report
    assert np.array_equal(values, T)


def test_partial_warps(emu):
    error, report, values = emu.model("reverse", 45, 0)
    assert (error, report) == (0, "")
    assert values == list(range(44, -1, -1))


# ---- under sanitizers ----------------------------------------------------------------------------


def test_address_sanitizer_finds_what_runs_over(sanitized):
    program = sanitized("address")
    assert run(program, "reverse").returncode == 0
    for name in ("global_overrun", "shared_overrun"):
        done = run(program, name)
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr
        assert f"{name}" in done.stderr
        assert "model_kernels.cu" in done.stderr


def test_the_kernels_are_clean_under_address_sanitizer(sanitized):
    done = run(sanitized("address"), "9", "32", "33", "65")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("good") == 12
    done = run(sanitized("address"), "covariance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("good") == 12


def test_thread_sanitizer_finds_the_missing_barriers(sanitized):
    program = sanitized("thread")
    for name in ("reverse", "static_sum", "half_warps"):
        done = run(program, name)
        assert done.returncode == 0, done.stderr
    for name in ("missing_barrier", "missing_warp_barrier"):
        done = run(program, name)
        assert done.returncode == 66
        assert "data race" in done.stderr
        assert name in done.stderr


def test_the_kernels_have_no_data_race(sanitized):
    done = run(sanitized("thread"), "9", "33")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("good") == 3
    done = run(sanitized("thread"), "covariance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("good") == 4
