"""Tidies up the kept videos of a namespace: expired ones, the space of removed ones, files that a crash has left.

A part with many dead rows, or one of many small parts, is sealed, so that its writer goes on with another one. Its
videos are then moved to a part of this process, some per step, and at last it is dropped. A crash leaves nothing
undone that the next sweep does not do. The file of a dropped part stays for a while: a reader in another process may
be about to open it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import RedisPipeline, RedisWrites
from vidlex.service.labels.store.transaction import NoStep, Step
from vidlex.service.videos.commands import VideoClient, reads_of, writes_of
from vidlex.service.videos.keys import CHANGES_KEY_PATTERN, namespace_of
from vidlex.service.videos.packing import ENTRY, KILL, Place, Record
from vidlex.service.videos.parts import files as part_files
from vidlex.service.videos.parts.files import SUFFIX, PartDamaged, row_bytes, row_type
from vidlex.service.videos.parts.writer import PartWriter, Written
from vidlex.service.videos.removal import remove
from vidlex.service.videos.space import Space, StoredPart, kill

_log = structlog.get_logger("vidlex.videos")

RETIRED_SECONDS = 600.0  # that the file of a dropped part stays
ORPHAN_SECONDS = 86_400.0  # without a change, after which a file that the store does not know goes
_TURN_MS = 60_000
_MAX_EXPIRED = 500  # per step
_DEAD_SHARE = 0.3  # of rows
_READ_SHARE = 0.1  # of videos
_MIN_DEAD_BYTES = 1 << 20
_SMALL_VIDEOS = 1024
_MAX_SMALL_PARTS = 8
_MOVED_VIDEOS, _MOVED_ROWS = 256, 4096  # per step
_MAX_ATTEMPTS = 5

WriterOf = Callable[[str], PartWriter]  # by the fingerprint


@dataclass(frozen=True)
class Swept:
    expired: int = 0
    moved: int = 0
    dropped_parts: int = 0
    removed_files: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.expired + other.expired,
            self.moved + other.moved,
            self.dropped_parts + other.dropped_parts,
            self.removed_files + other.removed_files,
        )


@dataclass(frozen=True, eq=False)
class _Part:
    name: str
    stored: StoredPart
    alive: NDArray[np.void]  # of ENTRY
    numbers: NDArray[np.int64]  # of these entries
    file_rows: int | None  # None: there is no file

    @property
    def dead_rows(self) -> int:
        return (self.file_rows or 0) - int(self.alive["num_rows"].sum())

    @property
    def is_wasteful(self) -> bool:
        num_bytes = self.dead_rows * row_bytes(self.stored.dim)
        return num_bytes >= _MIN_DEAD_BYTES and self.dead_rows >= _DEAD_SHARE * (self.file_rows or 0)


@dataclass(frozen=True)
class _Move:
    fingerprint: str
    places: dict[bytes, Place]  # where the videos were, by packed id
    rows: list[bytes]  # theirs

    @property
    def dim(self) -> int:
        return next(iter(self.places.values())).dim


def namespaces(client: VideoClient) -> Iterator[str]:
    with store_errors():
        for key in client.scan_iter(match=CHANGES_KEY_PATTERN, count=1000):
            namespace = namespace_of(key)
            if namespace is not None:
                yield namespace


def sweep(space: Space, writer_of: WriterOf, pause_seconds: float = 0.0) -> Swept:
    """Does nothing if another process is at it, or has been in the last ``pause_seconds``.

    Raises StoreUnavailable, StorageFull.
    """
    token = secrets.token_hex(8)
    with store_errors():
        if not space.client.set(space.keys.upkeep, token, nx=True, px=_TURN_MS):
            return Swept()
    try:
        ends_at = time.monotonic() + _TURN_MS / 2000  # the rest waits for the next sweep
        return _Sweep(space, writer_of, ends_at).run()
    finally:
        with suppress(StoreUnavailable), store_errors():
            if space.client.get(space.keys.upkeep) == token.encode():
                if pause_seconds:
                    space.client.set(space.keys.upkeep, token, px=max(1, round(pause_seconds * 1000)))
                else:
                    space.client.delete(space.keys.upkeep)


class _Sweep:
    def __init__(self, space: Space, writer_of: WriterOf, ends_at: float) -> None:
        self._space = space
        self._writer_of = writer_of
        self._ends_at = ends_at

    def run(self) -> Swept:
        space = self._space
        with store_errors():
            now_ms = store_now_ms(space.client)
            history = space.history(space.client)
            generations = [name.decode() for name in space.client.hgetall(space.keys.generations)]
        swept = Swept(expired=self._expire(now_ms))
        if history is None:
            return swept
        for fingerprint in generations:
            parts = self._parts(history, fingerprint)
            for part in _worth_moving(parts):
                if time.monotonic() > self._ends_at:
                    return swept
                swept += self._empty(history, fingerprint, part)
            self._forget_generation(fingerprint)
        return swept + self._remove_files(history, now_ms)

    def _expire(self, now_ms: int) -> int:
        num_expired = 0
        while time.monotonic() < self._ends_at:
            with store_errors():
                ids = self._space.client.zrangebyscore(self._space.keys.expiry, 0, now_ms, start=0, num=_MAX_EXPIRED)
            removed = remove(self._space, ids, expired_at_ms=now_ms) if ids else 0
            num_expired += removed
            if not removed:
                return num_expired
        return num_expired

    def _parts(self, history: str, fingerprint: str) -> list[_Part]:
        """Those that may have to be moved."""
        space, keys = self._space, self._space.keys
        found = []
        with store_errors():
            stored_parts = space.parts(space.client, fingerprint)
            with space.client.pipeline(transaction=False) as pipe:
                for name in stored_parts:
                    pipe.strlen(keys.entries(name))
                    pipe.strlen(keys.kills(name))
                lengths = pipe.execute()
            for (name, stored), entry_bytes, kill_bytes in zip(
                stored_parts.items(), lengths[::2], lengths[1::2], strict=True
            ):
                num_entries, num_kills = entry_bytes // ENTRY.itemsize, kill_bytes // KILL.itemsize
                is_small = num_entries - num_kills < _SMALL_VIDEOS
                if not (is_small or stored.is_sealed or num_kills >= _READ_SHARE * num_entries):
                    continue  # its entries, which may be large, need not be read
                entries = np.frombuffer(space.client.getrange(keys.entries(name), 0, -1), ENTRY)
                kills = np.frombuffer(space.client.getrange(keys.kills(name), 0, -1), KILL)
                numbers = np.setdiff1d(np.arange(len(entries)), kills)
                file_rows = part_files.num_rows_in(space.path(history, fingerprint, name), stored.dim)
                found.append(_Part(name, stored, entries[numbers], numbers, file_rows))
        return found

    # -- moving ------------------------------------------------------------------------------------------------------

    def _empty(self, history: str, fingerprint: str, part: _Part) -> Swept:
        if not self._mark(fingerprint, part.name, is_sealed=True):
            return Swept()
        moved, path = 0, self._space.path(history, fingerprint, part.name)
        head = self._space.head(history, fingerprint, part.name, part.stored.dim)
        sealed = next((found for found in self._parts(history, fingerprint) if found.name == part.name), None)
        if sealed is None:
            return Swept()
        for start, stop in _chunks(sealed.alive["num_rows"]):
            if time.monotonic() > self._ends_at:
                return Swept(moved=moved)
            places: dict[bytes, Place] = {}
            rows: list[bytes] = []
            for number, entry in zip(sealed.numbers[start:stop].tolist(), sealed.alive[start:stop], strict=True):
                packed_id = entry["id"].tobytes()
                try:
                    found = part_files.read_rows(path, head, int(entry["row"]), int(entry["num_rows"]))
                    part_files.check_rows(found, packed_id)
                except PartDamaged as error:
                    _log.error("kept_features_damaged", namespace=self._space.namespace, internal=str(error))
                    self._mark(fingerprint, part.name, is_sealed=True, is_stuck=True)
                    continue
                rows.append(found.tobytes())
                places[packed_id] = Place(b"", part.name, number, int(entry["row"]), len(found), part.stored.dim)
            if places:
                moved += self._move(history, _Move(fingerprint, places, rows))
        dropped = self._drop(history, fingerprint, part.name)
        return Swept(moved=moved, dropped_parts=int(dropped))

    def _move(self, history: str, move: _Move) -> int:
        writer = self._writer_of(move.fingerprint)
        rows = np.frombuffer(b"".join(move.rows), row_type(move.dim))
        with writer.lock:
            for _ in range(_MAX_ATTEMPTS):  # the part that is sealed may be the writer's own
                written = writer.append(history, move.dim, rows)
                try:
                    moved = self._space.steps.run(partial(self._move_step, writer, move, written))
                except StoreUnavailable:
                    writer.abandon()
                    raise
                if moved is not None:
                    writer.stored(len(rows), moved)
                    return moved
                writer.abandon()
        return 0

    def _move_step(
        self, writer: PartWriter, move: _Move, written: Written, pipe: RedisPipeline, revision: int
    ) -> Step[int | None] | NoStep[int | None]:
        """The number of new entries; None if the store is not as this process knows it."""
        fingerprint, places = move.fingerprint, move.places
        reads, keys = reads_of(pipe), self._space.keys
        raw = reads.hget(keys.parts(fingerprint), written.part)
        stored = None if raw is None else StoredPart.parse(raw)
        entries_bytes = reads.strlen(keys.entries(written.part))
        if self._space.history(reads) != writer.history or not writer.is_continued(written, stored, entries_bytes):
            return NoStep(None)
        moved: list[tuple[Record, Place, Place]] = []
        row = written.row
        for record, expected in zip(self._space.records(reads, list(places)), places.values(), strict=True):
            old = None if record is None else record.place_of(fingerprint)
            if record is not None and old is not None and (old.part, old.entry) == (expected.part, expected.entry):
                moved.append((record, old, replace(old, part=written.part, entry=written.entry + len(moved), row=row)))
            row += expected.num_rows
        if not moved:
            return NoStep(0)
        now_ms = store_now_ms(reads)

        def write(queue: RedisWrites) -> None:
            writes = writes_of(queue)
            if written.is_first:
                writes.hset(keys.parts(fingerprint), written.part, StoredPart(written.dim, now_ms).packed())
            for record, old, new in moved:
                all_places = tuple(new if place == old else place for place in record.places)
                writes.hset(keys.records, record.packed_id, replace(record, places=all_places).packed())
            writes.append(keys.entries(written.part), b"".join(new.as_entry(r.packed_id) for r, _, new in moved))
            kill(writes, keys, [old for _, old, _ in moved])

        return Step(len(moved), write, "put", ())

    def _mark(self, fingerprint: str, part: str, *, is_sealed: bool, is_stuck: bool = False) -> bool:
        """False if there is no such part any more."""
        key = self._space.keys.parts(fingerprint)

        def body(pipe: RedisPipeline, revision: int) -> Step[bool] | NoStep[bool]:
            raw = reads_of(pipe).hget(key, part)
            if raw is None:
                return NoStep(False)
            old = StoredPart.parse(raw)
            new = replace(old, is_sealed=old.is_sealed or is_sealed, is_stuck=old.is_stuck or is_stuck)
            if new == old:
                return NoStep(True)
            return Step(True, lambda queue: _set_part(queue, key, part, new), "put", ())

        return self._space.steps.run(body)

    def _drop(self, history: str, fingerprint: str, part: str) -> bool:
        keys = self._space.keys
        path = self._space.path(history, fingerprint, part)

        def body(pipe: RedisPipeline, revision: int) -> Step[bool] | NoStep[bool]:
            reads = reads_of(pipe)
            num_entries = reads.strlen(keys.entries(part)) // ENTRY.itemsize
            num_kills = reads.strlen(keys.kills(part)) // KILL.itemsize
            if self._space.history(reads) != history or num_entries != num_kills:
                return NoStep(False)
            now_ms = store_now_ms(reads)

            def write(queue: RedisWrites) -> None:
                writes = writes_of(queue)
                writes.hdel(keys.parts(fingerprint), part)
                writes.unlink(keys.entries(part), keys.kills(part))
                writes.zadd(keys.retired, {str(path.relative_to(self._space.root)): now_ms})

            return Step(True, write, "remove", (), leaves_nothing=not reads.zcard(keys.order))

        return self._space.steps.run(body)

    def _forget_generation(self, fingerprint: str) -> None:
        """Of an encoder of which no video and no part is left."""
        keys = self._space.keys

        def body(pipe: RedisPipeline, revision: int) -> Step[None] | NoStep[None]:
            reads = reads_of(pipe)
            if int(reads.hget(keys.generations, fingerprint) or 0) > 0 or reads.hlen(keys.parts(fingerprint)):
                return NoStep(None)
            is_empty = not reads.zcard(keys.order)
            write = partial(_forget, key=keys.generations, fingerprint=fingerprint)
            return Step(None, write, "remove", (), leaves_nothing=is_empty)

        with store_errors():
            if int(self._space.client.hget(keys.generations, fingerprint) or 0) > 0:
                return
        self._space.steps.run(body)

    # -- files -------------------------------------------------------------------------------------------------------

    def _remove_files(self, history: str, now_ms: int) -> Swept:
        """Of this history only: those of an emptied store are still good once its data are back."""
        space, keys = self._space, self._space.keys
        num_removed = 0
        with store_errors():
            due = space.client.zrangebyscore(keys.retired, 0, now_ms - RETIRED_SECONDS * 1000)
            for name in due:
                path = space.root / name.decode()
                if path.is_relative_to(space.root / space.namespace) and ".." not in path.parts:
                    with part_files.file_errors():
                        path.unlink(missing_ok=True)
                num_removed += 1
                space.client.zrem(keys.retired, name)
            known = {name.decode() for name in space.client.zrange(keys.retired, 0, -1)}
        folder = space.root / space.namespace / history
        for path in sorted(folder.glob(f"*/*{SUFFIX}")):
            with suppress(OSError):  # another process was faster
                if time.time() - path.stat().st_mtime < ORPHAN_SECONDS or str(path.relative_to(space.root)) in known:
                    continue
                if not self._is_known(path.parent.name, path.name.removesuffix(SUFFIX)):
                    path.unlink()
                    num_removed += 1
        return Swept(removed_files=num_removed)

    def _is_known(self, folder: str, part: str) -> bool:
        space = self._space
        with store_errors():
            for digest, fingerprint in space.fingerprints(space.client).items():
                if digest.hex() == folder and space.client.hexists(space.keys.parts(fingerprint), part):
                    return True
        return False


def _worth_moving(parts: Sequence[_Part]) -> list[_Part]:
    """Each part that has begun to be moved, is empty or wasteful, and small ones if there are many."""
    usable = [part for part in parts if not part.stored.is_stuck]
    chosen = [part for part in usable if part.stored.is_sealed or part.is_wasteful or not len(part.alive)]
    rest = [part for part in usable if part not in chosen and len(part.alive) < _SMALL_VIDEOS]
    return chosen + (rest if len(rest) > _MAX_SMALL_PARTS else [])


def _chunks(num_rows: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    start = rows = 0
    for index, number in enumerate(num_rows.tolist()):
        if index > start and (index - start == _MOVED_VIDEOS or rows + number > _MOVED_ROWS):
            yield start, index
            start, rows = index, 0
        rows += number
    if start < len(num_rows):
        yield start, len(num_rows)


def _set_part(queue: RedisWrites, key: str, part: str, stored: StoredPart) -> None:
    writes_of(queue).hset(key, part, stored.packed())


def _forget(queue: RedisWrites, key: str, fingerprint: str) -> None:
    writes_of(queue).hdel(key, fingerprint)
