"""Reads GGUF files, the format of llama.cpp, with NumPy alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_F32, _F16, _Q4_1, _Q8_0 = 0, 1, 3, 8
_BLOCK = 32  # values that share a scale


class _Reader:
    """Little-endian values, one after the other."""

    def __init__(self, content: npt.NDArray[np.uint8]) -> None:
        self.content, self.place = content, 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{count}{code}", self.content, self.place)
        self.place += struct.calcsize(f"<{count}{code}")
        return found

    def number(self, code: str) -> Any:
        return self.scalars(code)[0]

    def string(self) -> str:
        length = self.number("Q")
        self.place += length
        return bytes(self.content[self.place - length : self.place]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in (_STRING, _ARRAY):
                return [self.value(inner) for _ in range(count)]
            return list(self.scalars(_SCALARS[inner], count))
        return self.number(_SCALARS[kind])


def read(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, npt.NDArray[np.float32]]]]:
    """Metadata by key, and the tensors one after the other in float32, dequantised.

    Raises ValueError for another kind of file, and for tensors of kinds other than F32, F16, Q4_1
    and Q8_0.
    """
    reader = _Reader(np.memmap(path, np.uint8, "r"))
    if bytes(reader.content[:4]) != b"GGUF":
        raise ValueError(f"read: argument path: expected a GGUF file, got {path}")
    reader.place = 8  # behind the version
    tensors, entries = reader.scalars("Q", 2)
    metadata = {}
    for _ in range(entries):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    infos = []
    for _ in range(tensors):
        name = reader.string()
        shape = reader.scalars("Q", reader.number("I"))[::-1]  # the fastest dimension comes first
        infos.append((name, shape, reader.number("I"), reader.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    begin = -(-reader.place // alignment) * alignment

    def each() -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        for name, shape, kind, offset in infos:
            content = reader.content[begin + offset :]
            yield name, _values(content, int(np.prod(shape)), kind).reshape(shape)

    return metadata, each()


def _values(content: npt.NDArray[np.uint8], count: int, kind: int) -> npt.NDArray[np.float32]:
    if kind in (_F32, _F16):
        size, dtype = (4, np.float32) if kind == _F32 else (2, np.float16)
        return content[: count * size].view(dtype).astype(np.float32)
    if kind not in (_Q4_1, _Q8_0):
        raise ValueError(f"read: tensor kind {kind}: expected F32, F16, Q4_1 or Q8_0")
    head, body = (4, _BLOCK // 2) if kind == _Q4_1 else (2, _BLOCK)
    blocks = content[: count // _BLOCK * (head + body)].reshape(-1, head + body)
    halves = blocks[:, :head].copy().view(np.float16).astype(np.float32)
    if kind == _Q8_0:
        return blocks[:, head:].copy().view(np.int8) * halves
    # The low halves of the bytes are the first 16 values of a block, the high halves the others.
    packed = blocks[:, head:]
    steps = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return steps * halves[:, :1] + halves[:, 1:]
