"""Gives freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

_GROWTH_BYTES = 32 << 20
_INTERVAL_SECONDS = 5.0
_STATM = Path("/proc/self/statm")


class Heap:
    """The memory of this process. Only on Linux with glibc, which keeps freed memory below what is still in use."""

    def __init__(self) -> None:
        self._num_bytes = 0  # after the last trim
        self._trimmed_at = -_INTERVAL_SECONDS

    def trim(self) -> None:
        """Cheap to call again and again: works for milliseconds, and only if the process has grown since the last time.

        Call it while nothing is at work: what is used again has to be fetched again.
        """
        now = monotonic()
        if now - self._trimmed_at < _INTERVAL_SECONDS or resident_bytes() < self._num_bytes + _GROWTH_BYTES:
            return
        self._trimmed_at = now
        with suppress(AttributeError, OSError):  # musl has none
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
        self._num_bytes = resident_bytes()


def resident_bytes() -> int:
    """0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
