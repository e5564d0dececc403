"""Which kept videos match a label since its last backfill: a record in the label store's server, the videos in a file.

    vidlex-videos:{NAMESPACE}:matches       hash    label id -> record, as JSON
    vidlex-videos:{NAMESPACE}:match-bytes   string  of all files of the namespace

A file is written once and never changed; the record names the file that counts. A video takes 36 bytes.
"""

from __future__ import annotations

import json
import secrets
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import redis
import structlog
from numpy.typing import NDArray

from vidlex.model.files import replace_atomically
from vidlex.service.errors import FULL_DISK_ERRORS, ByteQuotaExceeded, StorageFull
from vidlex.service.ids import is_id
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import is_label_id, is_namespace
from vidlex.service.labels.store.redis_types import Guard, accept_any, typed_client
from vidlex.service.videos.keys import PACKED_ID_BYTES, pack_id, unpack_id
from vidlex.service.videos.records import VIDEO_PREFIX

FOLDER = ".matches"  # in the folder of kept videos; no namespace begins with a point
ID_TYPE = np.dtype("S15")  # packed ids

_MAGIC = b"VIDLEXM1"
_HEAD = struct.Struct("<8sQQI")

_log = structlog.get_logger("vidlex.retagging")


@dataclass(frozen=True)
class MatchRecord:
    """Of one label's last backfill."""

    label_id: str
    job_id: str
    file: str
    num_bytes: int
    model: str  # fingerprint
    calibration: str | None  # fingerprint
    vocabulary_revision: int
    threshold: float
    num_videos: int  # that were scored
    num_matched: int
    num_gained: int
    num_lost: int
    created_at_ms: int
    is_told: bool = False  # the webhook of its changes is queued


@dataclass(frozen=True)
class MatchedVideo:
    """Without a score and a stretch if it is lost."""

    video_id: str
    score: float | None
    start_ms: int | None
    end_ms: int | None
    change: Literal["gained", "lost"] | None


@dataclass(frozen=True, eq=False)
class MatchedVideos:
    """k videos, sorted by id, and those that matched before and were scored again but do not match any more."""

    ids: NDArray[np.bytes_]  # [k]
    scores: NDArray[np.float32]
    start_ms: NDArray[np.int64]  # of the best stretch
    end_ms: NDArray[np.int64]
    is_gained: NDArray[np.bool_]  # did not match before
    lost_ids: NDArray[np.bytes_]

    @property
    def gained_ids(self) -> NDArray[np.bytes_]:
        return self.ids[self.is_gained]

    def page(self, change: str | None, *, after_id: str | None, limit: int) -> tuple[list[MatchedVideo], bool]:
        """Of all that match, or those that were ``gained`` or ``lost``; and whether there are more."""
        rows = np.flatnonzero(self.is_gained) if change == "gained" else np.arange(len(self.ids))
        ids = self.lost_ids if change == "lost" else self.ids[rows]
        start = 0
        if after_id is not None and is_id(after_id, VIDEO_PREFIX):
            start = int(np.searchsorted(ids, np.array(pack_id(after_id), ID_TYPE), side="right"))
        part = ids[start : start + limit]
        if change == "lost":
            videos = [MatchedVideo(video_id, None, None, None, "lost") for video_id in texts_of(part)]
        else:
            videos = [
                MatchedVideo(
                    video_id,
                    float(self.scores[row]),
                    int(self.start_ms[row]),
                    int(self.end_ms[row]),
                    "gained" if self.is_gained[row] else None,
                )
                for video_id, row in zip(texts_of(part), rows[start : start + limit].tolist(), strict=True)
            ]
        return videos, start + limit < len(ids)

    @classmethod
    def none(cls) -> MatchedVideos:
        ids, times = np.empty(0, ID_TYPE), np.empty(0, np.int64)
        return cls(ids, np.empty(0, np.float32), times, times, np.empty(0, np.bool_), ids)


class MatchStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, root: Path, max_bytes: int, *, guard: Guard = accept_any) -> None:
        self._client = typed_client(client)
        self._root = root / FOLDER
        self._max_bytes = max_bytes
        self._guard = guard

    def record(self, namespace: str, label_id: str) -> MatchRecord | None:
        with store_errors():
            return _parse(self._client.hget(_key(namespace), label_id))

    def records(self, namespace: str) -> dict[str, MatchRecord]:
        with store_errors():
            found = map(_parse, self._client.hgetall(_key(namespace)).values())
        return {record.label_id: record for record in found if record is not None}

    def read(self, namespace: str, label_id: str) -> tuple[MatchRecord, MatchedVideos] | None:
        """A file that is missing or damaged counts as no backfill."""
        for _ in range(3):  # another backfill may replace the file between the two reads
            record = self.record(namespace, label_id)
            if record is None:
                return None
            with suppress(FileNotFoundError):
                try:
                    return record, _load(self._folder(namespace) / record.file)
                except (OSError, ValueError) as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    _log.error("matches_damaged", namespace=namespace, label_id=label_id, reason=repr(error))
                    return None
        _log.error("matches_missing", namespace=namespace, label_id=label_id)
        return None

    def replace(self, namespace: str, new: MatchRecord, videos: MatchedVideos, *, before: MatchRecord | None) -> bool:
        """Durable on return; ``new.file`` and ``new.num_bytes`` are set here. False, and nothing changed, if ``before``
        is not the label's record any more.

        Raises ByteQuotaExceeded, StorageFull.
        """
        folder = self._folder(namespace)
        path = folder / f"{new.label_id}-{secrets.token_hex(8)}.matches"
        _save(path, videos)
        new = replace(new, file=path.name, num_bytes=path.stat().st_size)
        is_stored = False
        try:
            is_stored = self._swap(namespace, new, before)
        finally:
            if not is_stored:
                path.unlink(missing_ok=True)
        for old in folder.glob(f"{new.label_id}-*.matches"):  # also those that a killed process left
            if old.name != path.name and (before is None or old.name == before.file or _is_old(old, path)):
                old.unlink(missing_ok=True)
        return True

    def mark_told(self, namespace: str, record: MatchRecord) -> None:
        """No effect if the label has another record by now."""
        self._write(namespace, record.label_id, lambda stored: stored.job_id == record.job_id, {"is_told": True})

    def forget(self, namespace: str, label_ids: Sequence[str]) -> None:
        """Of labels that are removed."""
        for label_id in label_ids:
            record = self.record(namespace, label_id)
            if record is None:
                continue
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                self._guard(pipe)
                pipe.multi()
                pipe.hdel(_key(namespace), label_id)
                pipe.incrby(_bytes_key(namespace), -record.num_bytes)
                pipe.execute()
            (self._folder(namespace) / record.file).unlink(missing_ok=True)

    def num_bytes(self, namespace: str) -> int:
        with store_errors():
            return int(self._client.get(_bytes_key(namespace)) or 0)

    def _swap(self, namespace: str, new: MatchRecord, before: MatchRecord | None) -> bool:
        key, bytes_key = _key(namespace), _bytes_key(namespace)
        added = new.num_bytes - (0 if before is None else before.num_bytes)
        with store_errors():
            while True:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.watch(key, bytes_key)
                    self._guard(pipe)
                    if not _is_same(_parse(pipe.hget(key, new.label_id)), before):
                        return False
                    if added > 0 and int(pipe.get(bytes_key) or 0) + added > self._max_bytes:
                        raise ByteQuotaExceeded("The kept videos' matches would exceed VIDLEX_MAX_KEPT_BYTES")
                    pipe.multi()
                    pipe.hset(key, new.label_id, json.dumps(asdict(new)))
                    pipe.incrby(bytes_key, added)
                    with suppress(redis.WatchError):
                        pipe.execute()
                        return True

    def _write(self, namespace: str, label_id: str, accepts: Any, changes: dict[str, Any]) -> None:
        key = _key(namespace)
        with store_errors():
            while True:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.watch(key)
                    self._guard(pipe)
                    stored = _parse(pipe.hget(key, label_id))
                    if stored is None or not accepts(stored):
                        return
                    pipe.multi()
                    pipe.hset(key, label_id, json.dumps(asdict(replace(stored, **changes))))
                    with suppress(redis.WatchError):
                        pipe.execute()
                        return

    def _folder(self, namespace: str) -> Path:
        if not is_namespace(namespace):
            raise ValueError(f"{namespace!r} is no namespace")
        return self._root / namespace


def texts_of(packed_ids: NDArray[np.bytes_]) -> list[str]:
    return [unpack_id(raw.ljust(PACKED_ID_BYTES, b"\0")) for raw in packed_ids.tolist()]  # numpy drops zeros at the end


def _key(namespace: str) -> str:
    return f"vidlex-videos:{{{namespace}}}:matches"


def _bytes_key(namespace: str) -> str:
    return f"vidlex-videos:{{{namespace}}}:match-bytes"


def _columns(num_matched: int, num_lost: int) -> list[tuple[np.dtype[Any], int]]:
    return [
        (ID_TYPE, num_matched),
        (np.dtype("<f4"), num_matched),
        (np.dtype("<i8"), num_matched),
        (np.dtype("<i8"), num_matched),
        (np.dtype("?"), num_matched),
        (ID_TYPE, num_lost),
    ]


def _save(path: Path, videos: MatchedVideos) -> None:
    """Magic, numbers of matched and lost videos, CRC-32 of the columns, and these: little-endian."""
    columns: Sequence[NDArray[Any]] = (
        *(videos.ids, videos.scores, videos.start_ms, videos.end_ms, videos.is_gained, videos.lost_ids),
    )
    types = _columns(len(videos.ids), len(videos.lost_ids))
    content = b"".join(column.astype(kind).tobytes() for column, (kind, _) in zip(columns, types, strict=True))
    head = _HEAD.pack(_MAGIC, len(videos.ids), len(videos.lost_ids), zlib.crc32(content))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_atomically(path, is_shared=True, is_synced=True) as temporary, temporary.open("wb") as file:
            file.write(head)
            file.write(content)
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise StorageFull(internal=repr(error)) from error
        raise


def _load(path: Path) -> MatchedVideos:
    """Raises OSError, ValueError."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise ValueError("it has no header")
        magic, num_matched, num_lost, crc = _HEAD.unpack(head)
        size = sum(kind.itemsize * num for kind, num in _columns(num_matched, num_lost))
        if magic != _MAGIC or size != path.stat().st_size - _HEAD.size:
            raise ValueError("its header does not fit it")
        content = file.read(size)
    if zlib.crc32(content) != crc:
        raise ValueError("it has another checksum")
    found, start = [], 0
    for kind, num in _columns(num_matched, num_lost):
        found.append(np.frombuffer(content, kind, num, start))
        start += kind.itemsize * num
    return MatchedVideos(*found)


def _parse(raw: bytes | None) -> MatchRecord | None:
    if raw is None:
        return None
    try:
        record = MatchRecord(**json.loads(raw))
        if not is_label_id(record.label_id) or not record.file.startswith(record.label_id) or "/" in record.file:
            raise ValueError("its names are not valid")
        return record
    except (ValueError, TypeError, AttributeError) as error:
        _log.error("match_record_damaged", reason=repr(error))
        return None


def _is_same(stored: MatchRecord | None, expected: MatchRecord | None) -> bool:
    return stored is None if expected is None else stored is not None and stored.file == expected.file


def _is_old(file: Path, than: Path) -> bool:
    """By an hour: a younger one may be written by another process at this moment."""
    with suppress(FileNotFoundError):
        return file.stat().st_mtime < than.stat().st_mtime - 3600
    return False
