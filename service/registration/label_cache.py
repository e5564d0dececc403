"""Label vectors kept on disk: a name that this encoder has read before is not read again.

A vector is found by namespace, encoder fingerprint, device and the name as it is encoded, of which only a hash is kept.
The namespace is part of it on purpose: a hit, which is fast, must not tell one tenant what another has registered.

It is only ever a saving: what the disk, another process or a damaged file does to it ends in a miss. SQLite in WAL mode
keeps the file whole when a process is killed; each vector has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

log = structlog.get_logger("vidlex.label_cache")

Vector = NDArray[np.float32]

_SCHEMA = 1
_PAGE_BYTES = 16384
"""Seven vectors of 512 numbers; of SQLite's usual 4096 bytes a single one would waste half."""
_LOG_PAGES = 64
_ROW_BYTES = 160
"""What a row takes beside its vector: key, checksum, time, and its places in two indexes."""
_MAX_ROWS = 256
"""Written in one transaction."""
_BUSY_SECONDS = 1.0
_FRESH_SECONDS = 3600.0
"""A vector's last use is written down at most once in this time: a hit is otherwise no write."""
_MAX_DAMAGED = 3
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last one: it is a database, but its tables are not ours."""
_REOPENED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


class LabelCache:
    """Thread-safe; any number of processes may share ``folder`` (on a local disk). ``close`` at the end.

    The file holds at most ``max_bytes``, beside a log of about 1 MiB; what was not used for longest makes room. 0 keeps
    nothing and touches no file. No method raises for what is wrong with the disk.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        on_lookup: Callable[[int, int], None] = lambda hits, misses: None,
    ) -> None:
        """``on_lookup(num_hits, num_misses)`` is told of each look."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_lookup = on_lookup
        self._lock = threading.Lock()
        self._open: tuple[Path, sqlite3.Connection] | None = None
        self._num_damaged = 0
        self._off = not max_bytes
        self._said = ""

    def within(self, *scope: str) -> KeptLabels:
        """The names of one scope: whatever, beside a name, decides who may have which vector."""
        return KeptLabels(self, scope)

    def get(self, scope: Sequence[str], names: Sequence[str]) -> dict[str, Vector]:
        """Those of ``names`` whose vectors [D] are there."""
        if not names or self._off:
            return {}
        keys = {_key(scope, name): name for name in names}
        rows = self._safely(lambda db: self._read(db, list(keys))) or {}
        self._on_lookup(len(rows), len(keys) - len(rows))
        return {keys[key]: vector for key, vector in rows.items()}

    def put(self, scope: Sequence[str], vectors: Mapping[str, Vector]) -> None:
        """Keep the vectors of these names; known ones are replaced."""
        rows = [(_key(scope, name), vector.astype("<f4").tobytes()) for name, vector in vectors.items()]
        longest = max((len(data) for _, data in rows), default=0)
        size = min(_MAX_ROWS, max(1, self._max_bytes // 8 // (longest + _ROW_BYTES)))
        for start in range(0, len(rows), size):
            if self._off or not self._safely(partial(self._write, rows=rows[start : start + size])):
                break

    def close(self) -> None:
        with self._lock:
            self._off = True
            self._shut()

    @property
    def num_bytes(self) -> int:
        """Size of the file now. Waits for nobody: the event loop asks, and a look may wait for the disk."""
        held = self._open
        try:
            return 0 if held is None else held[0].stat().st_size
        except OSError:
            return 0

    # --- rows

    def _read(self, db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        now, stale = int(self._clock()), []
        for start in range(0, len(keys), _MAX_ROWS):
            some = keys[start : start + _MAX_ROWS]
            marks = ",".join("?" * len(some))
            query = f"SELECT id, key, used_at, checksum, vector FROM vectors WHERE key IN ({marks})"
            for row, key, used_at, checksum, data in db.execute(query, some):
                if isinstance(data, bytes) and isinstance(key, bytes) and checksum == _checksum(key, data):
                    found[key] = np.frombuffer(data, "<f4").astype(np.float32)
                    if not isinstance(used_at, int) or not 0 <= now - used_at < _FRESH_SECONDS:
                        stale.append((now, row))
        if stale:
            self._unless_refused(lambda: _in_one_step(db, lambda: db.executemany(_TOUCH, stale)))
        return found

    def _write(self, db: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> bool:
        now = int(self._clock())
        _in_one_step(db, lambda: self._write_rows(db, rows, now))
        if _pragma(db, "page_count") * _PAGE_BYTES > self._max_bytes:  # the bound was lowered since
            db.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
        return True

    def _write_rows(self, db: sqlite3.Connection, rows: list[tuple[bytes, bytes]], now: int) -> None:
        needed = sum(len(data) + _ROW_BYTES for _, data in rows) * 5 // 4 + 4 * _PAGE_BYTES  # pages are never all full
        while (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _PAGE_BYTES + needed > self._max_bytes:
            (count,) = db.execute("SELECT count(*) FROM vectors").fetchone()
            if not count:
                return  # the bound is too small for these few
            db.execute(_EVICT, (max(1, count // 16),))
        db.executemany(_INSERT, [(key, now, _checksum(key, data), data) for key, data in rows])

    # --- the file

    def _safely(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """What ``work`` gives, or None when the file does not let it."""
        with self._lock:
            if self._off:
                return None
            try:
                return work(self._database())
            except (sqlite3.Error, OSError, OverflowError, ValueError, MemoryError) as error:
                self._failed(error)
                return None

    def _unless_refused(self, work: Callable[[], Any]) -> None:
        """A full disk or a busy file must not turn a hit into a miss; damage is seen again at the next look."""
        try:
            work()
        except sqlite3.OperationalError as error:
            self._say(error)

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / _name(max(_generations(self._folder), default=1))
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._open = path, db
            _prepare(db, self._max_bytes)
        return self._open[1]

    def _failed(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        damaged = isinstance(error, sqlite3.Error) and code in _DAMAGED and self._open is not None
        if not damaged:
            self._say(error)
            if isinstance(error, OSError) or code in _REOPENED:
                self._shut()
            return
        assert self._open is not None
        path = self._open[0]
        self._shut()
        self._num_damaged += 1
        self._off = self._num_damaged >= _MAX_DAMAGED
        log.error("label_cache_damaged", internal=str(error), file=path.name, off=self._off)
        try:
            self._put_aside(path)
        except OSError as refused:
            self._say(refused)

    def _put_aside(self, path: Path) -> None:
        """From now on the next number's file is the cache; the damaged one stays beside it, older ones go.

        No file is ever renamed, and no number used again: a process that still has the old one open works on it alone.
        """
        number = _number(path) or 1
        os.close(os.open(self._folder / _name(number + 1), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for old in _generations(self._folder):
            if old < number:
                for end in ("", "-wal", "-shm"):
                    (self._folder / (_name(old) + end)).unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._open is not None:
            try:
                self._open[1].close()
            except sqlite3.Error as error:
                self._say(error)
            self._open = None

    def _say(self, error: Exception) -> None:
        """Once for each trouble: a full disk would otherwise fill the log too."""
        text = f"{type(error).__name__}: {error}"
        if text != self._said:
            self._said = text
            log.warning("label_cache_refused", internal=text)


@dataclass(frozen=True)
class KeptLabels:
    """A LabelCache as one namespace and one encoder see it."""

    _cache: LabelCache
    _scope: tuple[str, ...]

    def get(self, names: Sequence[str]) -> dict[str, Vector]:
        """Those of ``names`` whose vectors [D] are there."""
        return self._cache.get(self._scope, names)

    def put(self, vectors: Mapping[str, Vector]) -> None:
        """Keep the vectors of these names; known ones are replaced."""
        self._cache.put(self._scope, vectors)


_TOUCH = "UPDATE vectors SET used_at = ? WHERE id = ?"
_EVICT = "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY used_at, id LIMIT ?)"
_INSERT = "INSERT OR REPLACE INTO vectors (key, used_at, checksum, vector) VALUES (?, ?, ?, ?)"
_TABLE = """CREATE TABLE IF NOT EXISTS vectors (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used_at INTEGER NOT NULL, checksum BLOB NOT NULL,
    vector BLOB NOT NULL
)"""


def _prepare(db: sqlite3.Connection, max_bytes: int) -> None:
    db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # this and the next count for a new file alone
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * _PAGE_BYTES}")
    db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // _PAGE_BYTES)}").fetchall()
    found = _pragma(db, "user_version")
    if found not in (0, _SCHEMA) or _pragma(db, "page_size") != _PAGE_BYTES:
        raise _unknown(f"schema {found}")
    if found == 0:
        _in_one_step(db, lambda: _create(db))


def _create(db: sqlite3.Connection) -> None:
    db.execute(_TABLE)
    db.execute("CREATE INDEX IF NOT EXISTS by_use ON vectors (used_at)")
    db.execute(f"PRAGMA user_version = {_SCHEMA}")


def _unknown(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(f"not a cache of this version: {what}")
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


def _in_one_step(db: sqlite3.Connection, work: Callable[[], Any]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        work()
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


def _name(number: int) -> str:
    return f"vectors-{number}.sqlite3"


def _number(path: Path) -> int | None:
    match = re.fullmatch(r"vectors-([1-9]\d{0,8})\.sqlite3", path.name)
    return None if match is None else int(match[1])


def _generations(folder: Path) -> list[int]:
    return [number for path in folder.iterdir() if (number := _number(path)) is not None]
