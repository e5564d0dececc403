"""Stops a store server that outlived its service: PR_SET_PDEATHSIG is unavailable, or the server did not obey it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from pathlib import Path

import redis

from vidlex.service.labels.embedded.server_files import DataFolderInUse, ServerFiles
from vidlex.service.labels.store.connection import connect_socket

_SERVER_NAMES = ("valkey-server", "redis-server")
_SOCKET_TIMEOUT_SECONDS = 2.0
_TERM_SECONDS = 10.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.02

_log = logging.getLogger(__name__)


def stop_orphaned_server(files: ServerFiles) -> None:
    """Return once no server uses the folder. The caller must hold the service's lock.

    Sends SHUTDOWN to the socket, then signals to processes that are verifiably servers in this folder. Raises
    DataFolderInUse if a server remains.
    """
    if not files.server_is_locked():
        return
    _log.warning("an earlier run left a store server running; stopping it")
    if _send_shutdown(files) and _wait_unlocked(files, _TERM_SECONDS):
        return
    for signal_number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        for pid in _server_pids(files):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        if _wait_unlocked(files, seconds):
            return
    raise DataFolderInUse(
        "Another store server is using this data folder",
        internal=f"{files.server_lock} is held by process {files.lock_owner_pid()}, which could not be stopped",
    )


def _send_shutdown(files: ServerFiles) -> bool:
    socket = files.last_socket()
    if socket is None or not socket.exists():
        return False
    client = connect_socket(str(socket), timeout_seconds=_SOCKET_TIMEOUT_SECONDS)
    try:
        folder = client.config_get("dir").get("dir")
        if folder is not None and Path(os.fsdecode(folder)) == files.folder:
            client.shutdown(nosave=True)
            return True
    except (redis.RedisError, OSError) as error:
        _log.info("the orphaned store server rejected SHUTDOWN: %s", error)
    finally:
        client.close()
    return False


def _server_pids(files: ServerFiles) -> list[int]:
    if Path("/proc/self/cwd").exists():
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_server_in(p, files.folder)]
    pid = files.lock_owner_pid()
    if pid is None:
        return []
    # Without /proc (macOS): the command line contains the path of this folder's configuration file.
    listing = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    command = os.fsdecode(listing.stdout)
    return [pid] if str(files.folder) in command and any(name in command for name in _SERVER_NAMES) else []


def _is_server_in(process: Path, folder: Path) -> bool:
    try:
        executable = Path((process / "exe").readlink()).name.removesuffix(" (deleted)")
        return executable in _SERVER_NAMES and (process / "cwd").readlink() == folder
    except OSError:
        return False  # the process has ended or belongs to another user


def _wait_unlocked(files: ServerFiles, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while files.server_is_locked():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
