"""Tables of features in this process, which follow the store: what is appended there is all that is read again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import structlog

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.changes import EMPTY_HEAD, Head, token_of
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import change_entry_id, parse_change_entry_id
from vidlex.service.labels.store.redis_types import StreamEntry
from vidlex.service.videos.packing import ENTRY, KILL
from vidlex.service.videos.parts.files import PartDamaged, PartHead, map_rows, num_rows_in, row_type
from vidlex.service.videos.parts.table import KeptTable, TablePart
from vidlex.service.videos.space import Space, StoredPart

_log = structlog.get_logger("vidlex.videos")

_MAX_BYTES = 1 << 30  # of all tables that are not in use
_STATE_BYTES = 2048
_MAX_ATTEMPTS = 50
_PREFETCHED_PARTS = 8  # per request: 12 MB of entries at most


@dataclass(frozen=True, eq=False)
class _Logs:
    """Of one part: whole entries and kills, as they are in the store."""

    stored: StoredPart
    entries: bytes = b""
    kills: bytes = b""


@dataclass(eq=False)
class _State:
    lock: threading.Lock = field(default_factory=threading.Lock)
    head: Head | None = None
    history: str | None = None
    logs: dict[str, _Logs] = field(default_factory=dict)
    parts: dict[str, TablePart] = field(default_factory=dict)
    table: KeptTable | None = None
    counted_bytes: int = 0  # of the cache's total

    @property
    def num_bytes(self) -> int:
        return (
            _STATE_BYTES
            + sum(len(logs.entries) + len(logs.kills) for logs in self.logs.values())
            + sum(part.num_bytes for part in self.parts.values())
        )


@dataclass(frozen=True)
class _Found:
    head: Head
    history: str | None
    logs: Mapping[str, _Logs]
    unread: Mapping[str, StoredPart]


class TableCache:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: OrderedDict[tuple[str, str], _State] = OrderedDict()
        self._num_bytes = 0  # of all states
        self._reported: set[str] = set()

    def table(self, space: Space, fingerprint: str) -> KeptTable:
        """Raises StoreUnavailable."""
        key = (space.namespace, fingerprint)
        with self._lock:
            state = self._states.setdefault(key, _State())
            self._states.move_to_end(key)
        with state.lock:
            try:
                return self._table(state, space, fingerprint)
            finally:
                self._account(key, state)

    def _table(self, state: _State, space: Space, fingerprint: str) -> KeptTable:
        with store_errors():
            head = _head(space.client.xrevrange(space.keys.changes, count=1))
            if state.head is None or head != state.head:
                self._follow(state, space, fingerprint)
        table = state.table
        if table is None or table.damaged or not all(map(_is_whole, table.parts)):
            table = state.table = self._build(state, space, fingerprint)
        return table

    def _account(self, key: tuple[str, str], state: _State) -> None:
        """A state without parts is forgotten: clients may name any fingerprint."""
        num_bytes = state.num_bytes if state.logs else 0
        with self._lock:
            if self._states.get(key) is not state:  # another request forgot it meanwhile
                return
            self._num_bytes += num_bytes - state.counted_bytes
            state.counted_bytes = num_bytes
            if not state.logs:
                del self._states[key]
            while self._num_bytes > _MAX_BYTES and len(self._states) > 1:
                _, oldest = self._states.popitem(last=False)
                self._num_bytes -= oldest.counted_bytes

    def _follow(self, state: _State, space: Space, fingerprint: str) -> None:
        for _ in range(_MAX_ATTEMPTS):
            found = _read(space, fingerprint, state.logs, state.head)
            if found is None:  # another history than the one that was read before, or too many steps ago
                state.head, state.history, state.logs, state.parts, state.table = None, None, {}, {}, None
                continue
            same = found.logs.keys() == state.logs.keys() and found.history == state.history
            if not same or any(logs is not state.logs[part] for part, logs in found.logs.items()):
                state.table = None
            state.logs, state.head, state.history = dict(found.logs), found.head, found.history
            if not found.unread:
                return
            unread = sorted(found.unread)
            for at in range(0, len(unread), _PREFETCHED_PARTS):
                state.logs |= _prefetch(
                    space, {part: found.unread[part] for part in unread[at : at + _PREFETCHED_PARTS]}
                )
            state.table = None
        raise StoreUnavailable("The label store is too busy", internal="parts of features change all the time")

    def _build(self, state: _State, space: Space, fingerprint: str) -> KeptTable:
        parts, damaged = {}, []
        for part, logs in sorted(state.logs.items(), key=lambda item: (item[1].stored.created_at_ms, item[0])):
            try:
                head = space.head(state.history or "", fingerprint, part, logs.stored.dim)
                parts[part] = _part_of(space, head, logs, state.parts.get(part))
            except PartDamaged as error:
                damaged.append(part)
                if part not in self._reported:
                    self._reported.add(part)
                    _log.error("kept_features_damaged", namespace=space.namespace, part=part, internal=str(error))
        state.parts = parts
        return KeptTable(state.history, [part for part in parts.values() if part.num_videos], damaged)


def _read(space: Space, fingerprint: str, known: Mapping[str, _Logs], anchor: Head | None) -> _Found | None:
    """What has been appended to the known logs, at one moment. None if ``anchor`` is not of this history."""
    keys, names = space.keys, list(known)
    with store_errors(), space.client.pipeline(transaction=True) as pipe:
        pipe.xrevrange(keys.changes, count=1)
        pipe.get(keys.history)
        pipe.hgetall(keys.parts(fingerprint))
        at = "0" if anchor is None else change_entry_id(anchor.revision)
        pipe.xrange(keys.changes, min=at, max=at, count=1)
        for part in names:
            pipe.getrange(keys.entries(part), len(known[part].entries), -1)
            pipe.getrange(keys.kills(part), len(known[part].kills), -1)
        replies = pipe.execute()
    if anchor is not None and anchor != EMPTY_HEAD and _head(replies[3]) != anchor:
        return None
    stored = {part.decode(): StoredPart.parse(raw) for part, raw in replies[2].items()}
    logs = {}
    for part, entries, kills in zip(names, replies[4::2], replies[5::2], strict=True):
        if part in stored:
            old = known[part]
            grown = bool(entries or kills)
            logs[part] = _Logs(old.stored, old.entries + entries, old.kills + kills) if grown else old
    history = None if replies[1] is None else replies[1].decode("ascii", "replace")
    unread = {part: head for part, head in stored.items() if part not in logs}
    return _Found(_head(replies[0]), history, logs, unread)


def _prefetch(space: Space, unread: Mapping[str, StoredPart]) -> dict[str, _Logs]:
    """What a part has at some moment is the beginning of what it has later."""
    with store_errors(), space.client.pipeline(transaction=False) as pipe:
        for part in unread:
            pipe.getrange(space.keys.entries(part), 0, -1)
        entries = pipe.execute()
    return {part: _Logs(head, raw) for (part, head), raw in zip(unread.items(), entries, strict=True)}


def _head(entries: Sequence[StreamEntry]) -> Head:
    for entry_id, fields in entries:
        return Head(parse_change_entry_id(entry_id), token_of(fields))
    return EMPTY_HEAD


def _part_of(space: Space, head: PartHead, logs: _Logs, old: TablePart | None) -> TablePart:
    """Raises PartDamaged."""
    num_entries, num_kills = len(logs.entries) // ENTRY.itemsize, len(logs.kills) // KILL.itemsize
    same = old is not None and (old.num_entries, old.num_kills) == (num_entries, num_kills)
    if old is not None and same and _is_whole(old):
        return old
    path = space.path(head.history, head.fingerprint, head.part)
    entries = np.frombuffer(logs.entries, ENTRY, num_entries)
    kills = np.frombuffer(logs.kills, KILL, num_kills)
    found = TablePart.of(head.part, path, np.zeros(0, row_type(head.dim)), entries, kills)
    if not found.num_videos:
        return found
    if old is not None and len(old.rows) >= found.min_file_rows and _is_whole(old):
        return replace(found, rows=old.rows)
    return replace(found, rows=map_rows(path, head, found.min_file_rows))


def _is_whole(part: TablePart) -> bool:
    """To read a mapped file behind its end would end this process."""
    if not part.num_videos:
        return True
    num_rows = num_rows_in(part.path, part.rows.dtype["vector"].shape[0])
    return num_rows is not None and num_rows >= part.min_file_rows
