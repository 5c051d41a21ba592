"""The CPU emulation of CUDA's execution model, and all kernels on it under sanitizers.

The emulation is compiled once per session and kind from tests/native; see csrc/README.md. The
kernels of an op are tested in test_emulated_<op>.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from emulation import COMPILER, build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
        timeout=900,
        check=False,
        env=environment,
    )


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
    check_all(sanitized("address"))


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
    check_all(sanitized("thread"))


def check_all(program: Path) -> None:
    done = run(program)  # every op
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 8
    assert all(line.rstrip().endswith("good") for line in lines), done.stdout
