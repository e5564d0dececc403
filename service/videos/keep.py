"""Stores a video: its rows first, durably, then the step that makes them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import ByteQuotaExceeded, KeptVideoDamaged, StoreUnavailable
from vidlex.service.ids import new_id
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import check_fingerprint
from vidlex.service.labels.store.redis_types import RedisPipeline, RedisWrites
from vidlex.service.labels.store.transaction import NoStep, Step
from vidlex.service.videos.commands import VideoReads, reads_of, writes_of
from vidlex.service.videos.keys import CONTENT_BYTES, fingerprint_digest, new_history, pack_id
from vidlex.service.videos.packing import MAX_DIM, Place, Record, pack_body, thumbnail_entries, video_of
from vidlex.service.videos.parts import files as part_files
from vidlex.service.videos.parts import thumbnails as thumbnail_files
from vidlex.service.videos.parts.files import PartDamaged
from vidlex.service.videos.parts.thumbnails import ThumbnailFile, retired_name
from vidlex.service.videos.parts.writer import PartWriter, Written
from vidlex.service.videos.records import VIDEO_PREFIX, KeptSegment, KeptVideo, NewKeptVideo, NewThumbnail
from vidlex.service.videos.space import Space, StoredPart, client_id_member, kill, sampling_digest

_MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class KeepLimits:
    max_bytes: int
    keep_seconds: float | None


@dataclass(frozen=True)
class _Seen:
    """The state that the rows were written for."""

    history: str | None
    old: Record | None


@dataclass(frozen=True)
class _Plan:
    seen: _Seen
    history: str
    packed_id: bytes
    place: Place
    written: Written | None  # None: the rows were there already


@dataclass(frozen=True)
class _Stored:
    record: Record
    video: NewKeptVideo


class Keeping:
    """One video, one encoder. Not thread-safe; ``run`` once."""

    def __init__(
        self,
        space: Space,
        limits: KeepLimits,
        new: NewKeptVideo,
        *,
        fingerprint: str,
        segments: Sequence[KeptSegment],
        vectors: NDArray[np.float32],
        thumbnails: Sequence[NewThumbnail] | None = None,
    ) -> None:
        """Raises ValueError for what no caller should pass."""
        check_fingerprint(fingerprint)
        self._sha256 = bytes.fromhex(new.sha256)
        if len(self._sha256) != 32:
            raise ValueError(f"not a SHA-256: {new.sha256!r}")
        if vectors.ndim != 2 or len(vectors) != len(segments) or not len(vectors):
            raise ValueError(f"{len(segments)} segments, and vectors of the shape {vectors.shape}")
        if not 0 < vectors.shape[1] <= MAX_DIM:
            raise ValueError(f"vectors of {vectors.shape[1]} dimensions")
        with np.errstate(over="ignore"):
            rounded = vectors.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise ValueError("vectors that are not finite as float16")
        self._space, self._limits = space, limits
        self._new, self._fingerprint = new, fingerprint
        self._sampling = sampling_digest(new)
        self._pictures = None if thumbnails is None else ThumbnailFile.of(thumbnails)
        self._are_pictures_written = False
        self._rows = part_files.make_rows(b"\0" * 15, segments, rounded)

    def run(self, writer: PartWriter) -> KeptVideo:
        """Raises ByteQuotaExceeded, StorageFull, StoreUnavailable."""
        with writer.lock:
            for _ in range(_MAX_ATTEMPTS):
                stored = self._attempt(writer)
                if stored is not None:
                    names = {fingerprint_digest(self._fingerprint): self._fingerprint}
                    with store_errors():
                        names |= self._space.fingerprints(self._space.client)
                    return video_of(stored.record, self._space.namespace, names)
        raise StoreUnavailable("The label store is too busy", internal="the video changes all the time")

    def _attempt(self, writer: PartWriter) -> _Stored | None:
        """None if another process changed what this one had seen."""
        space, rows = self._space, self._rows
        dim = rows["vector"].shape[1]
        with store_errors():
            seen = self._look(space.client)
            num_bytes = int(space.client.get(space.keys.num_bytes) or 0)
        if seen.history is not None and not (space.root / space.namespace / seen.history).is_dir():
            raise StoreUnavailable(
                "The folder of the kept videos is not the one that they are in: VIDLEX_VIDEOS_DIR must lead all "
                "replicas and workers to the same",
                internal=f"{space.root} has no {space.namespace}/{seen.history}",
            )
        packed_id = seen.old.packed_id if seen.old is not None else pack_id(new_id(VIDEO_PREFIX))
        part_files.sign(rows, packed_id)
        history = seen.history or new_history()
        unchanged = self._unchanged(seen)
        if unchanged is not None:
            self._check_quota(num_bytes, self._record(seen.old, packed_id, unchanged, 0)[0], seen.old)
            self._write_pictures()
            return space.steps.run(partial(self._step, writer, _Plan(seen, history, packed_id, unchanged, None)))
        # Before anything is on the disk: who is over the quota cannot fill it.
        self._check_quota(
            num_bytes, self._record(seen.old, packed_id, self._place("0" * 16, 0, 0, dim), 0)[0], seen.old
        )
        self._write_pictures()
        written = writer.append(history, dim, rows)
        place = self._place(written.part, written.entry, written.row, dim)
        try:
            stored = space.steps.run(partial(self._step, writer, _Plan(seen, history, packed_id, place, written)))
        except StoreUnavailable:
            writer.abandon()  # the step may have been stored
            raise
        if stored is not None:
            writer.stored(len(rows), 1)
        return stored

    def _write_pictures(self) -> None:
        if self._pictures is not None and self._pictures.entries and not self._are_pictures_written:
            thumbnail_files.write(self._space, self._pictures)
            self._are_pictures_written = True

    def _look(self, reads: VideoReads) -> _Seen:
        history = self._space.history(reads)
        found = self._space.ids_of_content(reads, self._sha256)
        for packed_id in (packed_id for sampling, packed_id in found if sampling == self._sampling):
            record = self._space.record(reads, packed_id)
            if record is not None and record.sha256 == self._sha256:
                return _Seen(history, record)
        return _Seen(history, None)

    def _unchanged(self, seen: _Seen) -> Place | None:
        """Where these rows are already, as after a request that is repeated because its answer was lost."""
        place = None if seen.old is None else seen.old.place_of(self._fingerprint)
        if place is None or seen.history is None or place.num_rows != len(self._rows):
            return None
        head = self._space.head(seen.history, self._fingerprint, place.part, place.dim)
        path = self._space.path(seen.history, self._fingerprint, place.part)
        try:
            found = part_files.read_rows(path, head, place.row, place.num_rows)
        except PartDamaged:
            return None
        return place if found.tobytes() == self._rows.tobytes() else None

    def _step(
        self, writer: PartWriter, plan: _Plan, pipe: RedisPipeline, revision: int
    ) -> Step[_Stored | None] | NoStep[_Stored | None]:
        packed_id, place, written = plan.packed_id, plan.place, plan.written
        keys, reads = self._space.keys, reads_of(pipe)
        now = self._look(reads)
        if now != plan.seen or not self._is_continued(reads, writer, written):
            return NoStep(None)
        now_ms = store_now_ms(reads)
        record, video, old_video = self._record(now.old, packed_id, place, now_ms)
        change = self._check_quota(int(reads.get(keys.num_bytes) or 0), record, now.old)
        old_pictures = None if now.old is None else now.old.thumbnails
        old_place = None if now.old is None else now.old.place_of(self._fingerprint)
        contents = (reads.hget(keys.contents, self._sha256[:CONTENT_BYTES]) or b"") if now.old is None else b""

        def write(queue: RedisWrites) -> None:
            writes = writes_of(queue)
            writes.set(keys.history, plan.history)
            writes.hset(keys.records, packed_id, record.packed())
            writes.incrby(keys.num_bytes, change)
            if record.thumbnails is not None and record.thumbnails != old_pictures:
                writes.zrem(keys.retired, retired_name(self._space, record.thumbnails))
            if old_pictures is not None and record.thumbnails != old_pictures:
                writes.zadd(keys.retired, {retired_name(self._space, old_pictures): now_ms})
            if now.old is None:
                writes.zadd(keys.order, {packed_id: 0})
                writes.hset(keys.contents, self._sha256[:CONTENT_BYTES], contents + self._sampling + packed_id)
            if record.expires_at_ms is not None:
                writes.zadd(keys.expiry, {packed_id: record.expires_at_ms})
            else:
                writes.zrem(keys.expiry, packed_id)
            if old_video is not None and old_video.client_id not in (None, video.client_id):
                writes.zrem(keys.client_ids, client_id_member(str(old_video.client_id), packed_id))
            if video.client_id is not None:
                writes.zadd(keys.client_ids, {client_id_member(video.client_id, packed_id): 0})
            if written is None:
                return
            if written.is_first:
                part = StoredPart(place.dim, now_ms)
                writes.hset(keys.parts(self._fingerprint), written.part, part.packed())
            writes.append(keys.entries(written.part), place.as_entry(packed_id))
            if old_place is not None:
                kill(writes, keys, [old_place])
            else:
                writes.hincrby(keys.generations, self._fingerprint, 1)

        return Step(_Stored(record, video), write, "put", ())

    def _is_continued(self, reads: VideoReads, writer: PartWriter, written: Written | None) -> bool:
        """Whether the files may be named by a step. Raises StoreUnavailable, ValueError."""
        keys, pictures = self._space.keys, self._pictures
        if written is not None:
            raw = reads.hget(keys.parts(self._fingerprint), written.part)
            stored = None if raw is None else StoredPart.parse(raw)
            if not writer.is_continued(written, stored, reads.strlen(keys.entries(written.part))):
                writer.abandon()
                return False
            if written.is_first:
                self._check_dimensions(reads)
        if pictures is None or not self._are_pictures_written:
            return True
        if reads.zscore(keys.retired, retired_name(self._space, pictures.token)) is None:  # upkeep was faster
            raise StoreUnavailable("The store took too long", internal="the file of thumbnails is gone")
        return True

    def _check_dimensions(self, reads: VideoReads) -> None:
        """Raises ValueError: vectors of one encoder form one matrix."""
        dim = self._rows["vector"].shape[1]
        others = {part.dim for part in self._space.parts(reads, self._fingerprint).values()} - {dim}
        if others:
            raise ValueError(f"vectors of {dim} dimensions; others of {self._fingerprint} have {others}")

    def _place(self, part: str, entry: int, row: int, dim: int) -> Place:
        return Place(fingerprint_digest(self._fingerprint), part, entry, row, len(self._rows), dim)

    def _record(
        self, old: Record | None, packed_id: bytes, place: Place, now_ms: int
    ) -> tuple[Record, NewKeptVideo, KeptVideo | None]:
        """The record, what it says of the video, and what it said before."""
        new, old_video = self._new, None
        expires_at_ms = None
        seconds = new.keep_seconds
        if old is not None:
            try:
                old_video = video_of(old, new.namespace, {})
            except KeptVideoDamaged:
                old_video = None  # replaced by a good one
        if old_video is not None:
            new = replace(
                new,
                uri=new.uri if new.uri is not None else old_video.uri,
                client_id=new.client_id if new.client_id is not None else old_video.client_id,
                metadata=new.metadata or old_video.metadata,
            )
            expires_at_ms = old_video.expires_at_ms
        elif seconds is None:
            seconds = self._limits.keep_seconds
        if seconds is not None:
            expires_at_ms = now_ms + round(seconds * 1000)
        others = () if old is None else tuple(p for p in old.places if p.fingerprint_digest != place.fingerprint_digest)
        entries, token, size = self._pictures_of(old)
        body = pack_body(new, entries)
        record = Record(packed_id, self._sha256, now_ms, expires_at_ms, (*others, place), body, token, size)
        return record, new, old_video

    def _pictures_of(self, old: Record | None) -> tuple[Sequence[Sequence[int]], str | None, int]:
        """Entries, token and size."""
        pictures = self._pictures
        if pictures is not None:
            return pictures.entries, pictures.token if pictures.entries else None, len(pictures.content)
        if old is None or old.thumbnails is None:
            return (), None, 0
        try:
            return thumbnail_entries(old), old.thumbnails, old.thumbnail_bytes
        except KeptVideoDamaged:
            return (), None, 0

    def _check_quota(self, used_bytes: int, record: Record, old: Record | None) -> int:
        """How many bytes more it takes. Raises ByteQuotaExceeded."""
        change = record.num_bytes - (0 if old is None else old.num_bytes)
        if change > 0 and used_bytes + change > self._limits.max_bytes:
            if not self._limits.max_bytes:
                raise ByteQuotaExceeded("This service keeps no videos; VIDLEX_MAX_KEPT_BYTES is 0")
            raise ByteQuotaExceeded(
                f"The kept videos of this namespace take {used_bytes} of {self._limits.max_bytes} bytes, and this one "
                f"would take {change}; remove some, or raise VIDLEX_MAX_KEPT_BYTES"
            )
        return change
