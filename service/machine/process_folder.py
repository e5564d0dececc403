"""A folder of files that are of use only to this process: the next one removes those of processes that were killed."""

from __future__ import annotations

import fcntl
import secrets
import shutil
from pathlib import Path
from typing import IO


class ProcessFolder:
    """Below ``root``, which other processes may share. ``start`` first, ``close`` last."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock_file: IO[bytes] | None = None
        self._folder = root / "not-started"

    def start(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for lock_path in self._root.glob("*.lock"):
            with lock_path.open("rb") as lock:
                if _try_lock(lock):  # its process has ended
                    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                    lock_path.unlink(missing_ok=True)
        while True:
            self._folder = self._root / secrets.token_hex(8)
            lock_path = self._folder.with_suffix(".lock")
            self._lock_file = lock_path.open("wb")
            # A process that is starting may have removed the lock file before it was locked.
            if _try_lock(self._lock_file) and lock_path.exists():
                break
            self._lock_file.close()
        self._folder.mkdir(mode=0o700)

    def close(self) -> None:
        if self._lock_file is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.with_suffix(".lock").unlink(missing_ok=True)
        self._lock_file.close()
        self._lock_file = None

    def new_path(self) -> Path:
        """Of a file that does not exist yet."""
        return self._folder / secrets.token_hex(16)


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
