"""Waiting for processes and conditions in tests."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


PATIENCE_SECONDS = 120.0
"""How long a test waits for what must come to pass: no claim about speed, since a busy machine takes its time."""


def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass in {seconds:.0f} s"
        time.sleep(0.005)


def wait_for_end(pid: int, seconds: float = PATIENCE_SECONDS) -> None:
    """Until the process is gone (or a zombie of somebody else's)."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} is still there"
    finally:
        os.close(handle)
