"""On-disk LRU cache of label vectors, keyed by a scope (namespace, encoder fingerprint, device) and a name.

The namespace is part of the key so that the speed of a hit does not reveal to one tenant which labels another has
registered; only a hash of the key is stored.

Every failure of the disk, of another process or of the file itself is a cache miss. SQLite in WAL mode keeps the file
consistent when a process is killed; each vector has its own checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

_log = structlog.get_logger("vidlex.registration")

Vector = NDArray[np.float32]
ResultT = TypeVar("ResultT")

_SCHEMA_VERSION = 1
_PAGE_BYTES = 16384  # seven vectors of 512 numbers; with the default of 4096 a single one would waste half a page
_WAL_PAGES = 64
_ROW_BYTES = 160  # of a row in addition to its vector: key, checksum, time, and its entries in two indexes
_MAX_TRANSACTION_ROWS = 256
_LOCK_TIMEOUT_SECONDS = 1.0
# A row's last use is updated at most this often, so that most hits write nothing.
_TOUCH_INTERVAL_SECONDS = 3600.0
_MAX_CORRUPT_FILES = 3
# SQLITE_ERROR: a valid database with other tables.
_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_REOPEN_CODES = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)

_CREATE_TABLE = """CREATE TABLE IF NOT EXISTS vectors (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used_at INTEGER NOT NULL, checksum BLOB NOT NULL,
    vector BLOB NOT NULL
)"""
_CREATE_INDEX = "CREATE INDEX IF NOT EXISTS by_use ON vectors (used_at)"
_TOUCH = "UPDATE vectors SET used_at = ? WHERE id = ?"
_EVICT = "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY used_at, id LIMIT ?)"
_INSERT = "INSERT OR REPLACE INTO vectors (key, used_at, checksum, vector) VALUES (?, ?, ?, ?)"


class LabelCache:
    """Thread-safe; any number of processes may share ``folder`` (on a local disk). No method raises on I/O errors.

    The file takes at most ``max_bytes``, plus a write-ahead log of about 1 MiB. With 0 the cache is disabled and no
    file is created. ``on_lookup(num_hits, num_misses)`` is called after each lookup.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        on_lookup: Callable[[int, int], None] = lambda hits, misses: None,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_lookup = on_lookup
        self._lock = threading.Lock()
        self._open: tuple[Path, sqlite3.Connection] | None = None
        self._num_corrupt_files = 0
        self._is_disabled = not max_bytes
        self._last_error = ""

    def get(self, scope: Sequence[str], names: Sequence[str]) -> dict[str, Vector]:
        if not names or self._is_disabled:
            return {}
        keys = {_key(scope, name): name for name in names}
        vectors = self._with_database(lambda db: self._read(db, list(keys))) or {}
        self._on_lookup(len(vectors), len(keys) - len(vectors))
        return {keys[key]: vector for key, vector in vectors.items()}

    def put(self, scope: Sequence[str], vectors: Mapping[str, Vector]) -> None:
        rows = [(_key(scope, name), vector.astype("<f4").tobytes()) for name, vector in vectors.items()]
        max_row_bytes = max((len(data) for _, data in rows), default=0) + _ROW_BYTES
        num_rows = min(_MAX_TRANSACTION_ROWS, max(1, self._max_bytes // 8 // max_row_bytes))
        for start in range(0, len(rows), num_rows):
            if not self._with_database(partial(self._write, rows=rows[start : start + num_rows])):
                break

    def close(self) -> None:
        with self._lock:
            self._is_disabled = True
            self._close_connection()

    @property
    def num_bytes(self) -> int:
        # No lock: the event loop reads this while a lookup waits for the disk.
        current = self._open
        try:
            return 0 if current is None else current[0].stat().st_size
        except OSError:
            return 0

    # --- rows

    def _read(self, db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, Vector]:
        vectors: dict[bytes, Vector] = {}
        now, touched = int(self._clock()), []
        for start in range(0, len(keys), _MAX_TRANSACTION_ROWS):
            batch = keys[start : start + _MAX_TRANSACTION_ROWS]
            marks = ",".join("?" * len(batch))
            query = f"SELECT id, key, used_at, checksum, vector FROM vectors WHERE key IN ({marks})"
            for row_id, key, used_at, checksum, data in db.execute(query, batch):
                if isinstance(data, bytes) and isinstance(key, bytes) and checksum == _checksum(key, data):
                    vectors[key] = np.frombuffer(data, "<f4").astype(np.float32)
                    if not isinstance(used_at, int) or not 0 <= now - used_at < _TOUCH_INTERVAL_SECONDS:
                        touched.append((now, row_id))
        if touched:
            try:
                with _transaction(db):
                    db.executemany(_TOUCH, touched)
            except sqlite3.OperationalError as error:
                # A full disk or a locked file must not turn a hit into a miss.
                self._log_once(error)
        return vectors

    def _write(self, db: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> Literal[True]:
        now = int(self._clock())
        with _transaction(db):
            if self._make_room(db, sum(len(data) + _ROW_BYTES for _, data in rows)):
                db.executemany(_INSERT, [(key, now, _checksum(key, data), data) for key, data in rows])
        if _pragma(db, "page_count") * _PAGE_BYTES > self._max_bytes:  # max_bytes is lower than at the last start
            db.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
        return True

    def _make_room(self, db: sqlite3.Connection, num_bytes: int) -> bool:
        """Evict rows until ``num_bytes`` of new ones fit. False if they do not fit into an empty table."""
        needed = num_bytes * 5 // 4 + 4 * _PAGE_BYTES  # pages are never completely full
        while (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _PAGE_BYTES + needed > self._max_bytes:
            (count,) = db.execute("SELECT count(*) FROM vectors").fetchone()
            if not count:
                return False
            db.execute(_EVICT, (max(1, count // 16),))
        return True

    # --- the file

    def _with_database(self, work: Callable[[sqlite3.Connection], ResultT]) -> ResultT | None:
        with self._lock:
            if self._is_disabled:
                return None
            try:
                return work(self._database())
            except (sqlite3.Error, OSError, OverflowError, ValueError, MemoryError) as error:
                self._handle_error(error)
                return None

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / _file_name(max(_generations(self._folder), default=1))
            _create_file(path)
            db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
            self._open = path, db
            _prepare(db, self._max_bytes)
        return self._open[1]

    def _handle_error(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if self._open is not None and isinstance(error, sqlite3.Error) and code in _CORRUPT_CODES:
            path = self._open[0]
            self._close_connection()
            self._num_corrupt_files += 1
            self._is_disabled = self._num_corrupt_files >= _MAX_CORRUPT_FILES
            _log.error("label_cache_corrupt", internal=str(error), file=path.name, disabled=self._is_disabled)
            try:
                self._start_next_file(path)
            except OSError as create_error:
                self._log_once(create_error)
            return
        self._log_once(error)
        if isinstance(error, OSError) or code in _REOPEN_CODES:
            self._close_connection()

    def _start_next_file(self, corrupt: Path) -> None:
        """Also deletes the files older than ``corrupt``, which stays for inspection.

        Files are never renamed and numbers never reused: a process that still has ``corrupt`` open is not affected.
        """
        number = _generation(corrupt) or 1
        _create_file(self._folder / _file_name(number + 1))
        for old in _generations(self._folder):
            if old < number:
                for suffix in ("", "-wal", "-shm"):
                    (self._folder / (_file_name(old) + suffix)).unlink(missing_ok=True)

    def _close_connection(self) -> None:
        if self._open is not None:
            try:
                self._open[1].close()
            except sqlite3.Error as error:
                self._log_once(error)
            self._open = None

    def _log_once(self, error: Exception) -> None:
        # Only if it differs from the last one: a full disk would otherwise flood the log.
        text = f"{type(error).__name__}: {error}"
        if text != self._last_error:
            self._last_error = text
            _log.warning("label_cache_error", internal=text)


def _prepare(db: sqlite3.Connection, max_bytes: int) -> None:
    db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # this and auto_vacuum affect only a new file
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE_BYTES}")
    db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // _PAGE_BYTES)}").fetchall()
    version = _pragma(db, "user_version")
    if version not in (0, _SCHEMA_VERSION) or _pragma(db, "page_size") != _PAGE_BYTES:
        error = sqlite3.DatabaseError(f"not a label cache of this version: schema {version}")
        error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
        raise error
    if version == 0:
        with _transaction(db):
            db.execute(_CREATE_TABLE)
            db.execute(_CREATE_INDEX)
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _key(scope: Sequence[str], name: str) -> bytes:
    return hashlib.sha256(json.dumps([*scope, name]).encode()).digest()


def _checksum(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=key).digest()


def _create_file(path: Path) -> None:
    # An existing file is left unchanged.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _file_name(generation: int) -> str:
    return f"vectors-{generation}.sqlite3"


def _generation(path: Path) -> int | None:
    match = re.fullmatch(r"vectors-([1-9]\d{0,8})\.sqlite3", path.name)
    return None if match is None else int(match[1])


def _generations(folder: Path) -> list[int]:
    return [number for path in folder.iterdir() if (number := _generation(path)) is not None]
