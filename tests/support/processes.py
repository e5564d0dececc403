"""Waiting for processes and conditions in tests."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from vidlex.service.decode.pool import DecodePool


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


PATIENCE_SECONDS = 120.0  # for conditions that must become true; generous, because machines may be busy


def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not become true within {seconds:.0f} s"
        time.sleep(0.005)


def wait_for_end(pid: int, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until the process has ended; it may remain as a zombie of another parent."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} is still running"
    finally:
        os.close(handle)


def worker_pids(pool: DecodePool) -> list[int]:
    return [process.pid for process in pool._processes if process is not None and process.is_alive]
