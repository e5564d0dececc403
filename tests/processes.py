"""Waiting for processes and conditions in tests."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def wait_for_end(pid: int, seconds: float = 20.0) -> None:
    """Until the process is gone (or a zombie of somebody else's)."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} is still there"
    finally:
        os.close(handle)
