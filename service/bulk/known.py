"""Which content and which files have a result, and where: an index on disk, small in memory for any number of rows."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
import threading
from pathlib import Path

from vidlex.service.bulk.engine import EngineIdentity
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.rows import Row

Place = tuple[str, int]  # name of the part, row in it
COLUMNS = ("uri", "file_version", "result_id", "sha256", "error_code")
"""What of a row is indexed."""


class KnownIndex:
    """Thread-safe. Later rows replace earlier ones."""

    def __init__(self, identity: EngineIdentity, options: TagOptions, *, retry_failed: bool = False) -> None:
        self._identity, self._options, self._retry_failed = identity, options, retry_failed
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="vidlex-index-")
        path = Path(self._folder.name) / "index"
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # An index that is lost is built again from the rows.
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16000;"
            "CREATE TABLE places (key BLOB PRIMARY KEY, part TEXT, row INTEGER) WITHOUT ROWID"
        )

    def add(self, row: Row, place: Place, *, failures: bool) -> None:
        """Rows of another encoder, vocabulary or sampling do not count. ``failures``: nor do failures without it."""
        if row["error_code"] is not None and (self._retry_failed or not failures):
            return
        if not is_of(row, self._identity, self._options):
            return
        keys = []
        if names_content(row):
            keys.append(source_key(row["uri"], row["file_version"]))
        if row["sha256"] is not None:
            keys.append(bytes.fromhex(row["result_id"]))
        with self._lock:
            self._database.executemany("REPLACE INTO places VALUES (?, ?, ?)", [(key, *place) for key in keys])

    def of_source(self, uri: str, version: str | None) -> Place | None:
        return self._find(source_key(uri, version))

    def of_content(self, result_id: str) -> Place | None:
        return self._find(bytes.fromhex(result_id))

    def close(self) -> None:
        self._database.close()
        self._folder.cleanup()

    def _find(self, key: bytes) -> Place | None:
        with self._lock:
            found = self._database.execute("SELECT part, row FROM places WHERE key = ?", (key,)).fetchone()
        return None if found is None else (found[0], found[1])


def is_of(row: Row, identity: EngineIdentity, options: TagOptions) -> bool:
    """Whether a run with these would write the row again: of a file that could not be read, every run would."""
    return row["sha256"] is None or row["result_id"] == identity.result_id(row["sha256"], options)


def names_content(row: Row) -> bool:
    """Whether address and version of the row say which content it is of, or that there was none."""
    return row["file_version"] is not None or row["sha256"] is None


def source_key(uri: str, version: str | None, *, num_bytes: int = 20) -> bytes:
    text = f"{uri}\0{version or ''}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=num_bytes).digest()
