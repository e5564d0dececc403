"""The store for those who have none: a Valkey server of our own on a Unix socket in the data folder.

It cannot outlive the service (launch.py), it cannot meet a second server on its files (two locks, server_files.py),
and when it dies under the service it is started again, while LabelStore answers StoreUnavailable.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import redis

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded import launch
from vidlex.service.labels.embedded.orphans import end_leftover_server
from vidlex.service.labels.embedded.server_files import ServerFiles, server_binary
from vidlex.service.labels.store.connection import connect_socket

_POLL_SECONDS = 0.2
_READY_POLL_SECONDS = 0.02
_MIN_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class EmbeddedStore:
    """``start()`` once, ``stop()`` once. Methods may be called from any thread."""

    def __init__(
        self, data_dir: Path, *, start_timeout_seconds: float = 60.0, stop_timeout_seconds: float = 10.0
    ) -> None:
        """``start_timeout_seconds`` includes reading the log of all writes back (a second per million or so)."""
        self._files = ServerFiles(data_dir)
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._lock_file: IO[str] | None = None
        self._supervisor: threading.Thread | None = None
        self._wake = threading.Event()
        self._state = threading.Condition()
        # Guarded by _state:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._num_starts = 0
        self._stop_wanted = False
        self._restart_wanted = False
        self._start_error: Exception | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server while it answers, else None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def socket_path(self) -> Path:
        if self._socket is None:
            raise StoreUnavailable(internal="the embedded store was not started")
        return self._socket

    def client(self) -> redis.Redis:
        """A new client with its own connections; it survives restarts of the server."""
        return connect_socket(os.fspath(self.socket_path))

    def start(self) -> Path:
        """Start the server and return its socket's path once it answers.

        Raises DataFolderInUse when another service has this folder, StoreUnavailable when the server does not come up
        in time (the end of its log is in ``internal``).
        """
        if self._supervisor is not None:
            raise RuntimeError("already started")
        self._files.create()
        self._lock_file = self._files.lock_for_service()
        # The kernel ends the server when the *thread* that forked it ends, so that thread is the supervisor.
        self._supervisor = threading.Thread(target=self._supervise, name="embedded-store", daemon=True)
        self._supervisor.start()
        try:
            self._wait_for_start(1)
        except BaseException:
            self.stop()
            raise
        return self.socket_path

    def restart(self) -> Path:
        """End the server cleanly and start it again. Raises StoreUnavailable when it is not back in time."""
        with self._state:
            if self._supervisor is None or self._stop_wanted:
                raise StoreUnavailable(internal="the embedded store is not running")
            target = self._num_starts + 1
            self._restart_wanted = True
        self._wake.set()
        self._wait_for_start(target)
        return self.socket_path

    def stop(self) -> None:
        """End the server and give the folder free. Safe to call twice."""
        with self._state:
            self._stop_wanted = True
            self._state.notify_all()
        self._wake.set()
        if self._supervisor is not None:
            self._supervisor.join()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def __enter__(self) -> EmbeddedStore:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_for_start(self, num_starts: int) -> None:
        # The supervisor bounds each try itself; the margin is for ending a leftover server first.
        timeout_seconds = self._start_timeout_seconds + 2 * self._stop_timeout_seconds + 30
        with self._state:
            done = self._state.wait_for(
                lambda: self._num_starts >= num_starts or self._start_error is not None or self._stop_wanted,
                timeout_seconds,
            )
            if self._start_error is not None:
                raise self._start_error
            if not done or self._num_starts < num_starts:
                raise StoreUnavailable("The embedded store did not start", internal=self._files.log_tail())

    # -- the supervisor's thread --------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        pause_seconds = _MIN_PAUSE_SECONDS
        while not self._stop_wanted:
            process: subprocess.Popen[bytes] | None = None
            try:
                end_leftover_server(self._files)
                if self._socket is None:
                    self._socket = self._files.choose_socket()  # once: clients keep this path over all restarts
                self._files.restore_socket_folder(self._socket)
                process = self._spawn(self._socket)
                self._wait_until_it_answers(process, self._socket)
                self._announce(process)
                pause_seconds = _MIN_PAUSE_SECONDS
                self._watch(process, self._socket)
            except Exception as error:
                if self._stop_wanted:
                    continue
                _log.error("the embedded store failed: %s %s", error, getattr(error, "internal", ""))
                with self._state:
                    if self._num_starts == 0:  # nobody relies on it yet: tell start() instead of trying on
                        self._start_error = error
                        self._state.notify_all()
                        return
                self._wake.clear()
                self._wake.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _MAX_PAUSE_SECONDS)
            finally:
                self._end(process)

    def _spawn(self, socket: Path) -> subprocess.Popen[bytes]:
        self._files.write_config(socket)
        with self._files.log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(Path(launch.__file__)),
                    str(os.getpid()),
                    os.fspath(self._files.server_lock),
                    os.fspath(server_binary()),
                    os.fspath(self._files.config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._files.folder,
                start_new_session=True,  # Ctrl-C in a terminal is for the service, which then ends the server itself
            )

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        deadline = time.monotonic() + self._start_timeout_seconds
        client = connect_socket(os.fspath(socket), timeout_seconds=1.0)
        try:
            while not self._stop_wanted:
                if process.poll() is not None:
                    raise StoreUnavailable(
                        "The embedded store did not start",
                        internal=f"the server ended with status {process.returncode}: {self._files.log_tail()}",
                    )
                with contextlib.suppress(redis.RedisError, OSError):  # not listening yet, or reading its log back
                    client.ping()
                    return
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        "The embedded store did not start in time",
                        internal=f"no answer in {self._start_timeout_seconds} s; its log: {self._files.log_tail()}",
                    )
                time.sleep(_READY_POLL_SECONDS)
        finally:
            client.close()

    def _announce(self, process: subprocess.Popen[bytes]) -> None:
        with self._state:
            self._process = process
            self._num_starts += 1
            self._restart_wanted = False
            self._state.notify_all()
        _log.info("the embedded store runs as process %d", process.pid)

    def _watch(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        """Return when the server has to be started anew or ended."""
        while not (self._stop_wanted or self._restart_wanted):
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
            if process.poll() is not None:
                _log.error("the embedded store ended with status %s; starting it again", process.returncode)
                return
            if not socket.exists():
                _log.error("the embedded store's socket was deleted; starting it again")
                return

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        with self._state:
            self._process = None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._stop_timeout_seconds)
        except subprocess.TimeoutExpired:
            _log.error("the embedded store did not end in %s s; killing it", self._stop_timeout_seconds)
            process.kill()
            process.wait()
        if self._stop_wanted:
            self._files.clear_socket()
