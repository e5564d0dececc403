"""Waiting for processes and conditions in tests."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vidlex.service.decode.pool import DecodePool


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


PATIENCE_SECONDS = 120.0  # for conditions that must become true; generous, because machines may be busy


def free_port(*more_at: int) -> int:
    """A free port, for a server that another process starts on it. The ports ``more_at`` above it are free too.

    Below 20,000: the system gives higher ones to outgoing connections and to servers on port 0, in the meantime too.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with ExitStack() as stack:
            try:
                for distance in (0, *more_at):
                    stack.enter_context(socket.create_server(("127.0.0.1", port + distance)))
            except OSError:
                continue
            return port


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
