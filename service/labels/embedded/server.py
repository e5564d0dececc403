"""The embedded store: a Valkey server on a Unix socket in the data folder, restarted if it dies.

It ends with the service (launch.py), and two locks exclude a second server on its files (server_files.py).
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

from vidlex.service.errors import StoreFull, StoreUnavailable
from vidlex.service.labels.embedded import launch
from vidlex.service.labels.embedded.orphans import stop_orphaned_server
from vidlex.service.labels.embedded.server_files import LogUnreadable, ServerFiles, server_binary
from vidlex.service.labels.store.connection import connect_socket

_POLL_SECONDS = 0.2
_READY_POLL_SECONDS = 0.02
_MIN_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class EmbeddedStore:
    """Thread-safe; may be started once."""

    def __init__(
        self, data_dir: Path, *, start_timeout_seconds: float = 60.0, stop_timeout_seconds: float = 10.0
    ) -> None:
        self._files = ServerFiles(data_dir)
        # Includes reading the log of all writes, about a second per million.
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._lock_file: IO[str] | None = None
        self._supervisor: threading.Thread | None = None
        self._wake = threading.Event()
        self._state = threading.Condition()
        # Guarded by _state:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._has_started = False
        self._stop_requested = False
        self._start_error: Exception | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def socket_path(self) -> Path:
        if self._socket is None:
            raise StoreUnavailable(internal="the embedded store has not been started")
        return self._socket

    @property
    def disk_is_full(self) -> bool:
        return self._files.disk_is_full()

    def client(self) -> redis.Redis:
        return connect_socket(os.fspath(self.socket_path))

    def start(self) -> Path:
        """Return the socket's path once the server answers. Raises DataFolderInUse, StoreUnavailable."""
        if self._supervisor is not None:
            raise RuntimeError("already started")
        self._files.create()
        self._lock_file = self._files.lock_for_service()
        try:
            self._files.check_log()
        except BaseException:
            self.stop()
            raise
        # The kernel stops the server when the thread that forked it ends, so the supervisor itself must fork it.
        self._supervisor = threading.Thread(target=self._supervise, name="embedded-store", daemon=True)
        self._supervisor.start()
        try:
            self._wait_for_start()
        except BaseException:
            self.stop()
            raise
        return self.socket_path

    def stop(self) -> None:
        with self._state:
            self._stop_requested = True
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

    def _wait_for_start(self) -> None:
        # The supervisor bounds the start itself; the margin is for stopping an orphaned server first.
        timeout_seconds = self._start_timeout_seconds + 2 * self._stop_timeout_seconds + 30
        with self._state:
            self._state.wait_for(
                lambda: self._has_started or self._start_error is not None or self._stop_requested, timeout_seconds
            )
            if self._start_error is not None:
                raise self._start_error
            if not self._has_started:
                raise StoreUnavailable("The embedded store did not start", internal=self._files.log_tail())

    # -- supervisor thread -------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        pause_seconds = _MIN_PAUSE_SECONDS
        while not self._stop_requested:
            process: subprocess.Popen[bytes] | None = None
            try:
                stop_orphaned_server(self._files)
                if self._socket is None:
                    self._socket = self._files.choose_socket()  # once: clients use this path after every restart
                self._files.restore_socket_folder(self._socket)
                process = self._spawn(self._socket)
                self._wait_until_ready(process, self._socket)
                self._mark_started(process)
                pause_seconds = _MIN_PAUSE_SECONDS
                self._wait_until_down(process, self._socket)
            except Exception as error:
                if self._stop_requested:
                    continue
                _log.error("the embedded store failed: %s %s", error, getattr(error, "internal", ""))
                with self._state:
                    if not self._has_started:  # start() raises the error; there is no retry
                        self._start_error = (
                            StoreFull("The embedded store cannot write to its folder", internal=str(error))
                            if isinstance(error, OSError)
                            else error
                        )
                        self._state.notify_all()
                        return
                self._wake.clear()
                self._wake.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _MAX_PAUSE_SECONDS)
            finally:
                self._stop_process(process)

    def _spawn(self, socket: Path) -> subprocess.Popen[bytes]:
        self._files.check_log()
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
                start_new_session=True,  # Ctrl-C in a terminal is for the service, which then stops the server
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        deadline = time.monotonic() + self._start_timeout_seconds
        client = connect_socket(os.fspath(socket), timeout_seconds=1.0)
        try:
            while not self._stop_requested:
                if process.poll() is not None:
                    raise LogUnreadable(
                        "The embedded store did not start: its disk is full"
                        if self._files.disk_is_full()
                        else "The embedded store did not start: it cannot read its files, which were not changed. "
                        "`vidlex store check` shows what is wrong, `vidlex store repair` repairs it",
                        internal=f"the server ended with status {process.returncode}: {self._files.log_tail()}",
                    )
                with contextlib.suppress(redis.RedisError, OSError):  # not listening yet, or reading its log
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

    def _mark_started(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            self._files.note_started()
        with self._state:
            self._process = process
            self._has_started = True
            self._state.notify_all()
        _log.info("the embedded store started with process id %d", process.pid)
        if self._files.left_out_torn_end(process.pid):
            _log.warning("the embedded store left out a torn transaction at its end, which was never acknowledged")

    def _wait_until_down(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        while not self._stop_requested:
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
            if process.poll() is not None:
                _log.error("the embedded store ended with status %s; restarting it", process.returncode)
                return
            if not socket.exists():
                _log.error("the embedded store's socket was deleted; restarting it")
                return

    def _stop_process(self, process: subprocess.Popen[bytes] | None) -> None:
        with self._state:
            self._process = None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._stop_timeout_seconds)
        except subprocess.TimeoutExpired:
            _log.error("the embedded store did not stop in %s s; killing it", self._stop_timeout_seconds)
            process.kill()
            process.wait()
        if self._stop_requested:
            self._files.clear_socket()
