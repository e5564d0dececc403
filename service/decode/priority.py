"""The priority of a decode process, which is lower for the rest of a long file.

Niceness belongs to threads, and an unprivileged process cannot raise its own again: only the threads of the file, which
end with it, are lowered. Where Linux schedules each session as a group (``sched_autogroup``), niceness counts within
the group only, and the group has a niceness that may be raised again. Elsewhere than on Linux nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_LOW = 10  # niceness
_NUM_TRIES, _RETRY_SECONDS = 3, 0.1  # the kernel refuses more than ten changes of groups per second


class Priority:
    """Only ``close`` is thread-safe. To be made while the service may still open the files about the process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._others: set[int] = set()  # threads that are not those of the file
        self._is_low = False
        self._lock = threading.Lock()
        self._group: int | None = None
        with contextlib.suppress(OSError):  # there are no such groups
            self._group = os.open(f"/proc/{pid}/autogroup", os.O_WRONLY | os.O_CLOEXEC)

    def begin_file(self) -> None:
        self._others = _threads(self._pid)

    def lower(self) -> None:
        self._is_low = True
        for _ in range(2):  # twice: a thread may have started another one in between
            for thread in _threads(self._pid) - self._others:
                with contextlib.suppress(OSError):  # it has ended
                    os.setpriority(os.PRIO_PROCESS, thread, _LOW)
        self._set_group(_LOW)

    def end_file(self) -> None:
        if self._is_low:
            self._is_low = False
            self._set_group(0)

    def close(self) -> None:
        with self._lock:
            if self._group is not None:
                os.close(self._group)
                self._group = None

    def _set_group(self, niceness: int) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has ended
            for _ in range(_NUM_TRIES):
                if self._group is None:
                    return
                try:
                    os.write(self._group, str(niceness).encode())
                    return
                except BlockingIOError:
                    time.sleep(_RETRY_SECONDS)


def _threads(pid: int) -> set[int]:
    try:
        return {int(folder.name) for folder in Path(f"/proc/{pid}/task").iterdir()}
    except OSError:
        return set()
