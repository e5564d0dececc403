"""Appends features to the parts of one namespace and encoder. No other process writes to a part of this one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from vidlex.service.errors import StorageFull, StoreUnavailable
from vidlex.service.videos.keys import new_part
from vidlex.service.videos.packing import ENTRY
from vidlex.service.videos.parts import files
from vidlex.service.videos.parts.files import PartDamaged, PartHead, Rows
from vidlex.service.videos.space import Space, StoredPart

_log = structlog.get_logger("vidlex.videos")

MAX_PART_ENTRIES = 65_536
MAX_PART_BYTES = 1 << 30


@dataclass
class _Open:
    head: PartHead
    path: Path
    num_rows: int = 0  # that are stored
    num_entries: int = 0

    def has_room(self, rows: Rows) -> bool:
        fits = (self.num_rows + len(rows)) * rows.dtype.itemsize <= MAX_PART_BYTES
        return self.num_entries < MAX_PART_ENTRIES and (fits or not self.num_rows)


@dataclass(frozen=True)
class Written:
    """Rows that are on the disk, but in no entry yet."""

    part: str
    row: int
    entry: int  # number of the next one
    dim: int

    @property
    def is_first(self) -> bool:
        return self.entry == 0


class PartWriter:
    """Hold ``lock`` from ``append`` until ``stored`` or ``abandon``. Rows that are never stored are overwritten."""

    def __init__(self, space: Space, fingerprint: str) -> None:
        self.lock = threading.Lock()
        self._space = space
        self._fingerprint = fingerprint
        self._open: _Open | None = None

    @property
    def history(self) -> str | None:
        return None if self._open is None else self._open.head.history

    def append(self, history: str, dim: int, rows: Rows) -> Written:
        """Durable on return. Raises StorageFull, StoreUnavailable."""
        try:
            for _ in range(2):
                current = self._open
                is_same = current is not None and (current.head.history, current.head.dim) == (history, dim)
                if current is None or not is_same or not current.has_room(rows):
                    current = self._begin(history, dim)
                try:
                    files.append(current.path, current.head, rows, current.num_rows)
                except PartDamaged as error:
                    _log.error("kept_features_damaged", part=current.head.part, internal=str(error))
                    self.abandon()
                else:
                    return Written(current.head.part, current.num_rows, current.num_entries, dim)
        except (StorageFull, StoreUnavailable):
            self.abandon()
            raise
        raise StoreUnavailable("The folder of the kept videos cannot be used", internal="a new file was damaged")

    def _begin(self, history: str, dim: int) -> _Open:
        part = new_part()
        head = self._space.head(history, self._fingerprint, part, dim)
        path = self._space.path(history, self._fingerprint, part)
        files.create(path, head)
        self._open = _Open(head, path)
        return self._open

    def is_continued(self, written: Written, stored: StoredPart | None, entries_bytes: int) -> bool:
        """Whether the store knows the part as this process left it: it was not restored, and the part is not sealed."""
        if entries_bytes != written.entry * ENTRY.itemsize:
            return False
        return stored is None if written.is_first else stored is not None and not stored.is_sealed

    def stored(self, num_rows: int, num_entries: int) -> None:
        if self._open is not None:
            self._open.num_rows += num_rows
            self._open.num_entries += num_entries

    def abandon(self) -> None:
        self._open = None
