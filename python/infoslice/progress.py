"""A one-line progress bar on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")
_WIDTH, _INTERVAL = 30, 0.1


def track(items: Iterable[T], title: str, *, show: bool = True) -> Iterator[T]:
    """Yield ``items`` and show how far they are, if ``show`` and standard error is a terminal.

    The line is erased at the end, also when the loop is left by an error or by Ctrl-C.
    """
    stream = sys.stderr
    if not show or not stream.isatty():
        yield from items
        return
    total = len(items) if isinstance(items, Sized) else 0
    start = last = time.monotonic()
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - last >= _INTERVAL:
                last = now
                filled = _WIDTH * done // total if total else 0
                bar = "#" * filled + "." * (_WIDTH - filled)
                stream.write(f"\r{title} [{bar}] {done}/{total or '?'} {now - start:.0f} s\033[K")
                stream.flush()
            yield item
    finally:
        stream.write("\r\033[K")
        stream.flush()
