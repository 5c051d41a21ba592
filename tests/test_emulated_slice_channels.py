"""The CUDA kernels of slice_channels on the CPU emulation, against NumPy's own indexing."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from emulation import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler on PATH and none in CXX: nothing to emulate with"
)

CHUNK = 32 << 10  # bytes of a target that a block writes
SCRATCH = 32 << 20
DTYPES = [np.uint8, np.int16, np.float32, np.float64, np.complex128]
DTYPES += [np.dtype("V3"), np.dtype("V6"), np.dtype("V32")]  # not of a power of two, or larger

rng = np.random.default_rng(20260713)


def numbers(shape: tuple[int, ...], dtype: Any, offset: int = 0) -> np.ndarray:
    """Random bytes, so many bytes behind an address of 64-byte alignment."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + 128, np.uint8)
    memory[:] = rng.integers(0, 256, size + 128)
    begin = -memory.ctypes.data % 64 + offset
    return memory[begin : begin + size].view(dtype).reshape(shape)


def some(size: int, count: int | None = None) -> np.ndarray:
    return np.sort(rng.permutation(size)[: size // 2 + 1 if count is None else count])


def expected_of(source: np.ndarray, keep: list[np.ndarray | None]) -> np.ndarray:
    for axis, kept in enumerate(keep):
        if kept is not None:
            source = np.take(source, kept, axis)
    return source


def dense_like(source: np.ndarray, shape: tuple[int, ...], fill: int, offset: int = 0) -> Any:
    """Memory for a result, poisoned, with the axes in the order of the source's strides."""
    order = sorted(range(source.ndim), key=lambda d: -source.strides[d])
    lines = numbers(tuple(shape[d] for d in order), source.dtype, offset)
    lines.reshape(-1).view(np.uint8)[:] = fill
    return lines.transpose(np.argsort(order))


def check(emu: Any, *cases: tuple[np.ndarray, list], seed: int = 0, offset: int = 0) -> tuple:
    """Cuts all in one call; returns entries, chunks and words of the table."""
    sources = [source for source, _ in cases]
    keeps = [keep for _, keep in cases]
    expected = [expected_of(*case) for case in cases]
    results = []
    for fill in (0x00, 0xFF):
        targets = [
            dense_like(source, right.shape, fill, offset)
            for source, right in zip(sources, expected, strict=True)
        ]
        told = emu.slice_channels(sources, targets, keeps, False, SCRATCH, seed)
        results.append([target.tobytes() for target in targets])
    right = [array.tobytes() for array in expected]
    assert results == [right, right]
    return told


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cut", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()])
def test_every_dtype_and_axis(emu, dtype, cut):
    for shape in [(7, 11, 5), (3, 2, 700), (130, 4, 8)]:
        x = numbers(shape, dtype)
        check(emu, (x, [some(shape[d]) if d in cut else None for d in range(3)]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.complex128], ids=str)
def test_sizes_about_chunks_and_vectors(emu, dtype):
    item = np.dtype(dtype).itemsize
    for kept in (1, 15, 16, 17, CHUNK // item - 1, CHUNK // item, CHUNK // item + 1):
        rows = numbers((2 * kept + 1, 1), dtype)
        check(emu, (rows, [some(2 * kept + 1, kept), None]))
    _, chunks, *_ = check(emu, (numbers((3, 5 * CHUNK // item), dtype), [np.array([0, 2]), None]))
    assert chunks == 10


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8])
def test_memory_of_any_alignment(emu, offset):
    for dtype in (np.uint8, np.int16, np.float32):
        if offset % np.dtype(dtype).itemsize:
            continue
        x, y = numbers((9, 80, 16), dtype, offset), numbers((9, 80, 16), dtype)
        for keep in ([some(9), None, None], [None, some(80), None], [None, None, some(16)]):
            check(emu, (x, keep), (y, keep))
            *_, units = check(emu, (x, keep), (y, keep), offset=offset)
            assert all(offset % unit == 0 for unit in units)


def test_convolutions(emu):
    for shape in [(64, 64, 3, 3), (20, 30, 5, 5), (33, 64, 1, 1), (16, 1, 3, 3)]:
        x = numbers(shape, np.int16)
        rows, columns = some(shape[0]), some(shape[1])
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        check(emu, (x, [rows, columns, None, None]), (last, [rows, columns, None, None]))


VIEWS = {
    "transposed": lambda x: x.transpose(1, 0, 2, 3),
    "permuted": lambda x: x.transpose(3, 1, 0, 2),
    "stepped": lambda x: x[::2, :, 1::2],
    "reversed": lambda x: x[:, ::-1, :, ::-1],
    "inside": lambda x: x[1:-1, 2:, 1:, :-1],
    "expanded": lambda x: np.broadcast_to(x[:1], (4, *x.shape[1:])),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64], ids=str)
def test_strides(emu, view, dtype):
    x = VIEWS[view](numbers((6, 8, 10, 16), dtype))
    keep = [some(size) if d % 2 else None for d, size in enumerate(x.shape)]
    right = expected_of(x, keep)
    for target in (np.empty(right.shape, dtype), np.empty(right.shape, dtype, order="F")):
        target[...] = 0xAA if dtype is np.uint8 else -1
        emu.slice_channels([x], [target], [keep], False, SCRATCH, 0)
        assert target.tobytes() == right.tobytes()


@pytest.mark.parametrize("dims", range(1, 13))
def test_up_to_twelve_dimensions(emu, dims):
    x = numbers((3,) + (2,) * (dims - 1), np.int16)
    check(emu, (x, [np.array([0, 2]), *[np.array([1])] * (dims - 1)]))
    check(emu, (x, [np.array([0, 2]) if d % 3 == 0 and d < 1 else None for d in range(dims)]))
    wide = numbers((4,) * min(dims, 7) + (1,) * (dims - min(dims, 7)), np.int16)
    check(emu, (wide, [np.array([0, 1, 3]) if d % 2 and d < 7 else None for d in range(dims)]))


def test_kept_blocks_are_copied_as_blocks(emu):
    x = numbers((16, 64 * 32), np.int16)
    heads = (some(64, 20)[:, None] * 32 + np.arange(32)).reshape(-1)
    _, _, words, _, units = check(emu, (x, [None, heads]))
    assert units == [16]
    _, _, words_of_any, _, units = check(emu, (x, [None, some(64 * 32, 640)]))
    assert units == [2]
    assert words_of_any - words > 600  # 20 entries in place of 640
    for begin in (0, 1, 8):  # a single block, at any place
        check(emu, (x, [None, np.arange(begin, begin + 40)]))
    pairs = np.array([0, 1, 3, 4, 8, 9, 11, 12])  # blocks of even length at odd places
    *_, units = check(emu, (x, [None, pairs]), (x, [pairs, None]), (x, [pairs, pairs]))
    assert units == [2, 16, 2]  # as wide as the alignment of all places allows


def test_nothing_to_cut_and_nothing_left(emu):
    none = np.empty(0, np.int64)
    x = numbers((5, 6), np.float32)
    told = check(emu, (x, [none, None]), (x[:0], [None, np.array([1])]), (x, [none, none]))
    assert told[:2] == (0, 0)
    assert emu.slice_channels([], [], [], False, SCRATCH, 0)[:2] == (0, 0)
    check(emu, (x, [none, None]), (x, [None, None]), (numbers((), np.float64), []))


def test_many_tensors_in_one_call(emu):
    shared = [some(64, 40), some(64, 17)]
    cases = []
    for i in range(300):
        dtype = DTYPES[i % 5]
        shape = [(64,), (64, 3), (5, 64), (64, 64, 3)][i % 4]
        keep = [shared[i % 2] if size == 64 else None for size in shape]
        cases.append((numbers(shape, dtype), keep))
    entries, chunks, words, *_ = check(emu, *cases)
    assert entries == 300 <= chunks
    assert words < 300 * 60 + 100  # a list that many share is there once
    assert check(emu, *cases, seed=3)[:3] == (entries, chunks, words)


@pytest.mark.parametrize("far", [2**31, 2**32, 2**33 + 5])
def test_indices_of_more_than_32_bits(emu, far):
    # An axis of stride 0 is as long as one likes.
    row = numbers((1, 6), np.int16)
    x = np.broadcast_to(row, (far + 10, 6))
    keep = np.array([0, 3, 4, far - 1, far + 9])
    target = np.zeros((5, 6), np.int16)
    emu.slice_channels([x], [target], [[keep, None]], False, SCRATCH, 0)
    assert np.array_equal(target, row.repeat(5, 0))
    # Entries of two words find their places: pages that are never touched have no memory.
    if far > 2**32:
        flat = np.empty(far + 10, np.uint8)
        kept = [1, 5, 2**32 - 1, 2**32, far, far + 9]
        flat[kept] = [3, 1, 4, 1, 5, 9]
        target = np.zeros(6, np.uint8)
        emu.slice_channels([flat], [target], [[np.array(kept)]], False, SCRATCH, 0)
        assert target.tolist() == [3, 1, 4, 1, 5, 9]
        del flat
        gc.collect()


# ---- in place ------------------------------------------------------------------------------------


def in_place(emu: Any, cases: list, scratch: int, seed: int = 0, offset: int = 0) -> tuple:
    """Contiguous or channels-last arrays cut in their own memory."""
    sources, targets = [], []
    for source, keep in cases:
        own = dense_like(source, source.shape, 0, offset)
        own[...] = source
        shape = expected_of(source, keep).shape
        order = sorted(range(own.ndim), key=lambda d: -own.strides[d])
        front = own.transpose(order).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
        sources.append(own)
        targets.append(front.reshape([shape[d] for d in order]).transpose(np.argsort(order)))
        assert np.shares_memory(targets[-1], own) or targets[-1].size == 0
    keeps = [keep for _, keep in cases]
    told = emu.slice_channels(sources, targets, keeps, True, scratch, seed)
    for target, case in zip(targets, cases, strict=True):
        assert target.tobytes() == expected_of(*case).tobytes()
    return told


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.complex128], ids=str)
@pytest.mark.parametrize("scratch", [1, 2 * CHUNK, SCRATCH])
def test_in_place(emu, dtype, scratch):
    long = 6 * CHUNK // np.dtype(dtype).itemsize
    cases = [
        (numbers((3, 7, 5), dtype), [some(3), some(7), None]),
        (numbers((long,), dtype), [some(long)]),
        (numbers((8, long // 8), dtype), [some(8), None]),
        (numbers((long // 32, 32), dtype), [None, some(32)]),
        (numbers((long // 8,), dtype), [None]),
    ]
    entries, chunks, _, group, _ = in_place(emu, cases, scratch, seed=1)
    assert entries == 4  # where nothing moves nothing is done
    assert group == min(chunks, max(1, scratch // CHUNK))
    assert group < chunks or scratch == SCRATCH
    in_place(emu, cases, scratch, seed=2, offset=np.dtype(dtype).itemsize)


def test_in_place_channels_last(emu):
    last = numbers((40, 9, 7, 24), np.int16).transpose(0, 3, 1, 2)
    for keep in ([some(40), None, None, None], [None, some(24), None, None]):
        in_place(emu, [(last, keep)], CHUNK)
    in_place(emu, [(last, [some(40), some(24), None, None])], CHUNK)


def test_in_place_chunks_overtake_nothing(emu):
    # All but the first element move by one place: every chunk is overwritten by the one before.
    for size in (5 * CHUNK, 5 * CHUNK + 1):
        x = numbers((size,), np.uint8)
        for seed in range(3):
            in_place(emu, [(x, [np.delete(np.arange(size), 1)])], CHUNK, seed)


# ---- uploads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 3, 4, 5, 1023, 1024, 3999, 4000, 4001, 31999, 32000, 32001, 36001, 100002]
)
def test_uploads_arrive_whole_and_touch_nothing_else(emu, size):
    sent = numbers((size,), np.uint8)
    for seed in range(3):
        got = emu.upload(sent, seed)
        assert np.array_equal(got[:size], sent)
        whole = (size + 3) // 4 * 4
        assert (got[size:whole] == 0).all()
        assert (got[whole:] == 0xFF).all()
