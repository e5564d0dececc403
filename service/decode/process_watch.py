"""Keeps all decode processes together within one budget of memory, and each within its number of threads.

The kernel bounds each process's address space, whose sum may exceed the machine's memory. A cgroup would bound the sum,
but neither a container nor an ordinary user can make one; so a thread of the service looks every 0.1 s, and kills the
largest process. In between, a process can take what its own limit leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from vidlex.service.decode.process import DecodeProcess
from vidlex.service.decode.usage import usage_of
from vidlex.service.machine.cpus import num_cpus

_log = structlog.get_logger("vidlex.decode")

_SECONDS = 0.1
_IDLE_SECONDS = 1.0


def max_threads() -> int:
    """Of one process: decoders with as many threads as there are CPUs, those that read for them, and some."""
    return 32 + 2 * num_cpus()


class ProcessWatch:
    """Memory is counted without what a process had taken before its first file. Linux only; elsewhere does nothing."""

    def __init__(self, processes: Callable[[], Sequence[DecodeProcess | None]], *, budget_bytes: int) -> None:
        self._processes = processes
        self._budget_bytes = budget_bytes
        self._max_threads = max_threads()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decode-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        is_busy = False
        while not self._stopping.wait(_SECONDS if is_busy else _IDLE_SECONDS):
            running = [process for process in self._processes() if process is not None and process.is_alive]
            is_busy = any(process.is_busy for process in running)
            taken = {process: self._taken_bytes(process) for process in running}
            total = sum(taken.values())
            if total > self._budget_bytes:
                largest = max(taken, key=lambda process: taken[process])
                _log.warning("decode_memory_exceeded", pid=largest.pid, bytes=taken[largest], total_bytes=total)
                largest.end("memory" if taken[largest] > self._budget_bytes else "budget")

    def _taken_bytes(self, process: DecodeProcess) -> int:
        """Ends the process if it has too many threads."""
        usage = usage_of(process.pid)
        if usage is None:
            return 0
        num_bytes, num_threads = usage
        if num_threads > self._max_threads:
            _log.warning("decode_threads_exceeded", pid=process.pid, num_threads=num_threads)
            process.end("threads")
            return 0
        return max(0, num_bytes - process.resting_bytes)
