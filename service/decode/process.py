"""A decode process as the pool sees it: start, send, receive, kill."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vidlex.service.decode import wire
from vidlex.service.decode.isolation.report import Isolation, IsolationLevel, isolation_of
from vidlex.service.decode.priority import Priority
from vidlex.service.decode.replies import decoder_name
from vidlex.service.decode.usage import usage_of
from vidlex.service.errors import UndecodableVideo, UnsupportedMedia

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.1  # of ``give_up``
_STOP_SECONDS = 1.0  # within which a process must drop a file; else it is killed
_INHERITED_VARIABLES = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


class StartFailed(Exception):
    pass


class ProcessCrashed(Exception):
    """Died, or was killed for an invalid message."""


Excess = Literal["memory", "budget", "threads"]


class ProcessExceeded(ProcessCrashed):
    """Ended for what it took: more memory than all processes together may, or most of it, or too many threads."""

    def __init__(self, excess: Excess) -> None:
        super().__init__(f"ended for {excess}")
        self.excess = excess


class ProcessTimeout(Exception):
    pass


class DecodeProcess:
    """A running `vidlex.service.decode.worker`. Only ``kill``, ``end`` and ``is_alive`` are thread-safe.

    Must be created by a thread that outlives it: the kernel kills the process when that thread ends. Raises
    StartFailed.
    """

    def __init__(
        self, setup: dict[str, Any], timeout_seconds: float, *, required_isolation: IsolationLevel = "none"
    ) -> None:
        self.num_jobs = 0  # counted by the pool
        self.is_busy = False  # with a file
        self._excess: Excess | None = None
        self._kill_lock = threading.Lock()
        self._channel, worker_channel = socket.socketpair()
        with worker_channel:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "vidlex.service.decode.worker",
                        str(worker_channel.fileno()),
                        str(os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # native libraries write contents of the file there
                    pass_fds=[worker_channel.fileno()],
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C in the terminal signals the service only
                )
            except OSError as error:
                self._channel.close()
                raise StartFailed(str(error)) from error
        self._priority = Priority(self.pid)
        try:
            with _beacon() as beacon:
                wire.send(self._channel, {**setup, "beacon": beacon})
                ready, _ = wire.receive(self._channel, deadline=time.monotonic() + timeout_seconds)
        except (wire.WireClosed, wire.WireTimeout) as error:
            self.kill()
            raise StartFailed(f"no reply: {type(error).__name__} {error} {self._exit_status()}") from error
        if "ready" not in ready:
            self.kill()
            raise StartFailed(str(ready.get("failed", "not ready")))
        try:
            self.isolation: Isolation = isolation_of(ready["isolation"])
            self.decoder = decoder_name(ready.get("decoder"))  # libraries and their versions
        except (ValueError, KeyError, TypeError) as error:
            self.kill()
            raise StartFailed(str(error)) from error
        if not self.isolation.is_at_least(required_isolation):
            self.kill()
            raise StartFailed(f"decode processes must be isolated ({required_isolation}), but are {self.isolation}")
        self.resting_bytes = (usage_of(self.pid) or (0, 0))[0]  # without a file

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Raises ProcessCrashed, after which the process is dead. ``descriptors`` come with a new file."""
        if descriptors:
            self.is_busy = True
            self._priority.begin_file()
        try:
            wire.send(self._channel, message, descriptors=descriptors)
        except wire.WireClosed as error:
            raise self._crashed(error) from error

    def receive(self, timeout_seconds: float, give_up: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """The next message; None once ``give_up`` returns True. Raises ProcessTimeout or ProcessCrashed, after which
        the process is dead.
        """
        deadline = time.monotonic() + timeout_seconds
        try:
            while not self._is_readable(min(_POLL_SECONDS, deadline - time.monotonic())):
                if give_up():
                    return None
                if time.monotonic() >= deadline:
                    raise wire.WireTimeout
            message = wire.receive(self._channel, deadline=deadline)[0]
            self.is_busy = "timestamps_ms" in message
            if not self.is_busy:
                self._priority.end_file()
            return message
        except wire.WireTimeout as error:
            self.kill()
            raise ProcessTimeout from error
        except wire.WireClosed as error:
            raise self._crashed(error) from error

    def lower_priority(self) -> None:
        """For the rest of the file in progress."""
        self._priority.lower()

    def drop_file(self) -> None:
        """Tell it to drop its file after the current chunk, and kill it if it does not."""
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            self.send({"stop": True})
            while (reply := self.receive(deadline - time.monotonic())) is not None and "timestamps_ms" in reply:
                pass  # a chunk that was on its way
        except (ProcessTimeout, ProcessCrashed):
            return

    def _is_readable(self, seconds: float) -> bool:
        poll = select.poll()  # unlike select.select, for any number of descriptors
        try:
            poll.register(self._channel, select.POLLIN)
        except (OSError, ValueError) as error:  # closed by ``kill``
            raise wire.WireClosed(str(error)) from error
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def kill(self) -> None:
        with self._kill_lock:
            self._process.kill()
            self._process.wait()
            self._channel.close()
            self._priority.close()

    def end(self, excess: Excess) -> None:
        """Kill it; its owner learns the reason from the next ``send`` or ``receive``."""
        self._excess = excess
        with self._kill_lock:
            self._process.kill()

    def _crashed(self, error: wire.WireClosed) -> ProcessCrashed:
        self.kill()
        if self._excess is not None:
            return ProcessExceeded(self._excess)
        return ProcessCrashed(f"{error}; {self._exit_status()}")

    def _exit_status(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit status {code}"


def shared_memory(num_bytes: int) -> tuple[int, mmap.mmap]:
    """(descriptor, map) of anonymous memory, sealed on Linux. The kernel frees it with its last descriptor and map."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("vidlex-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, num_bytes)
        # without the seal, a worker could shrink it and kill this process with SIGBUS on the next read
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, num_bytes)
    return descriptor, mmap.mmap(descriptor, num_bytes)


@contextmanager
def _beacon() -> Iterator[str]:
    """The address of an abstract socket, which an isolated process cannot find."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        if sys.platform == "linux":
            listener.bind("")
            yield bytes(listener.getsockname()[1:]).decode()
        else:
            yield ""


@contextmanager
def opened_file(path: Path) -> Iterator[int]:
    """A descriptor for a decode process. Raises UnsupportedMedia for what is not a file, and UndecodableVideo."""
    try:
        # without O_NONBLOCK, opening a FIFO would wait for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise UndecodableVideo(internal=f"{type(error).__name__}: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsupportedMedia("This is not a file.")
        yield descriptor
    finally:
        os.close(descriptor)


def _environment() -> dict[str, str]:
    # A decode process must not see the service's secrets.
    inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # glibc reserves 64 MiB of address space per arena, which counts towards the memory limit
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    return {**inherited, **single, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
