"""The pool's side of one decode process: start it, ask it, kill it."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from vidlex.service.decode import wire

_ROOT = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


class StartFailed(Exception):
    """A decode process did not come up."""


class ProcessCrashed(Exception):
    """A decode process died, or answered nonsense and was killed for it."""


class ProcessTimeout(Exception):
    """A decode process took too long and was killed."""


class DecodeProcess:
    """One running `vidlex.service.decode.worker`. Not thread-safe but for ``kill`` and ``alive``.

    Must be created by a thread that outlives it: the kernel kills the process when that thread ends.
    """

    def __init__(self, setup: dict[str, Any], timeout_seconds: float) -> None:
        self.jobs = 0
        """Files that it was given so far."""
        self._killing = threading.Lock()
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vidlex.service.decode.worker", str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # native libraries write there what a file tells them to
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    start_new_session=True,  # a Ctrl-C in the terminal goes to the service alone
                )
            except OSError as error:
                self._channel.close()
                raise StartFailed(str(error)) from error
        try:
            wire.send(self._channel, setup)
            hello, _ = wire.receive(self._channel, deadline=time.monotonic() + timeout_seconds)
        except (wire.WireClosed, wire.WireTimeout) as error:
            self.kill()
            raise StartFailed(f"no answer: {type(error).__name__} {error} {self._how_it_ended()}") from error
        if "ready" not in hello:
            self.kill()
            raise StartFailed(str(hello.get("failed", "it is not ready")))
        self.isolated = bool(hello.get("isolated"))
        """It has left the network."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], descriptor: int, timeout_seconds: float) -> dict[str, Any]:
        """Send a request and wait for its reply. After any exception the process is dead."""
        self.jobs += 1
        try:
            wire.send(self._channel, request, descriptor=descriptor)
            reply, _ = wire.receive(self._channel, deadline=time.monotonic() + timeout_seconds)
        except wire.WireTimeout as error:
            self.kill()
            raise ProcessTimeout from error
        except wire.WireClosed as error:
            self.kill()
            raise ProcessCrashed(f"{error}; {self._how_it_ended()}") from error
        return reply

    def kill(self) -> None:
        """Kill it and wait for its end. Safe to call again and from another thread."""
        with self._killing:
            self._process.kill()
            self._process.wait()
            self._channel.close()

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit status {code}"


def shared_memory(num_bytes: int) -> tuple[int, mmap.mmap]:
    """(descriptor, map) of anonymous memory that whoever gets the descriptor can fill but not shrink.

    It goes away by itself when nobody holds it any more, however its users died.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("vidlex-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, num_bytes)
        # shrunk memory would kill this process with SIGBUS on the next look
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, num_bytes)
    return descriptor, mmap.mmap(descriptor, num_bytes)


def _environment() -> dict[str, str]:
    """What a decode process needs to know, and none of the service's secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # arenas: glibc reserves 64 MiB of address space for each thread's own, which the limit would count
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    return {**kept, **one, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
