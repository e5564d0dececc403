"""Ending a server that outlived its service: a machine without PR_SET_PDEATHSIG, or a server too busy to obey it."""

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
_ASK_SECONDS = 2.0
_POLITE_SECONDS = 10.0
_FORCED_SECONDS = 5.0
_POLL_SECONDS = 0.02

_log = logging.getLogger(__name__)


def end_leftover_server(files: ServerFiles) -> None:
    """Return once no server works on the folder. Only for the holder of the service's lock.

    Asks through the socket, then signals, and only a process that is proven to be a server working in this very
    folder. Raises DataFolderInUse when one stays.
    """
    if not files.server_is_locked():
        return
    _log.warning("a store server is left over from an earlier run; ending it")
    if _ask_through_socket(files) and _wait_unlocked(files, _POLITE_SECONDS):
        return
    for signal_number, seconds in ((signal.SIGTERM, _POLITE_SECONDS), (signal.SIGKILL, _FORCED_SECONDS)):
        for pid in _servers_in(files):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        if _wait_unlocked(files, seconds):
            return
    raise DataFolderInUse(
        "Another store server is using this data folder",
        internal=f"{files.server_lock} is held by process {files.locked_by()}, which cannot be ended",
    )


def _ask_through_socket(files: ServerFiles) -> bool:
    """True when the server has been told to end."""
    socket = files.last_socket()
    if socket is None or not socket.exists():
        return False
    client = connect_socket(str(socket), timeout_seconds=_ASK_SECONDS)
    try:
        folder = client.config_get("dir").get("dir")
        if folder is not None and Path(os.fsdecode(folder)) == files.folder:
            client.shutdown(nosave=True)
            return True
    except (redis.RedisError, OSError) as error:
        _log.info("the leftover server does not obey its socket: %s", error)
    finally:
        client.close()
    return False


def _servers_in(files: ServerFiles) -> list[int]:
    """Processes that are certainly servers with this data folder."""
    if Path("/proc/self/cwd").exists():
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _works_in(p, files.folder)]
    pid = files.locked_by()
    if pid is None:
        return []
    # Without /proc (macOS): the command line names the configuration file of this folder.
    listing = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    command = os.fsdecode(listing.stdout)
    return [pid] if str(files.folder) in command and any(name in command for name in _SERVER_NAMES) else []


def _works_in(process: Path, folder: Path) -> bool:
    try:
        executable = Path((process / "exe").readlink()).name.removesuffix(" (deleted)")
        return executable in _SERVER_NAMES and (process / "cwd").readlink() == folder
    except OSError:
        return False  # gone meanwhile, or another user's


def _wait_unlocked(files: ServerFiles, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while files.server_is_locked():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
