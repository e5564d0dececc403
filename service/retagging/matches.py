"""Which kept videos match a label since its last backfill: a record in the label store's server, the videos in a file.

A file is written once and never changed; the record names the file that counts. A video takes 36 bytes. The keys are
listed in videos/keys.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import redis
import structlog

from vidlex.service.errors import ByteQuotaExceeded
from vidlex.service.jobs.queue.redis_types import JobPipeline
from vidlex.service.jobs.queue.transactions import Step, Transactions
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import is_label_id, is_namespace
from vidlex.service.labels.store.redis_types import Guard, accept_any, typed_client
from vidlex.service.retagging.match_files import MatchedVideos, MatchFiles, save
from vidlex.service.videos.keys import VideoKeys

FOLDER = ".matches"  # in the folder of kept videos; no namespace begins with a point

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


class MatchStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, root: Path, max_bytes: int, *, guard: Guard = accept_any) -> None:
        self._client = typed_client(client)
        self._transactions = Transactions(client, guard)
        self._root = root / FOLDER
        self._max_bytes = max_bytes
        self._files = MatchFiles()

    def record(self, namespace: str, label_id: str) -> MatchRecord | None:
        with store_errors():
            return _parse(self._client.hget(VideoKeys(namespace).matches, label_id))

    def records(self, namespace: str) -> dict[str, MatchRecord]:
        with store_errors():
            found = map(_parse, self._client.hgetall(VideoKeys(namespace).matches).values())
        return {record.label_id: record for record in found if record is not None}

    def read(self, namespace: str, label_id: str) -> tuple[MatchRecord, MatchedVideos] | None:
        """A file that is missing or damaged counts as no backfill."""
        for _ in range(3):  # another backfill may replace the file between the two reads
            record = self.record(namespace, label_id)
            if record is None:
                return None
            with suppress(FileNotFoundError):
                try:
                    return record, self._files.read(self._folder(namespace) / record.file)
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
        save(path, videos)
        new = replace(new, file=path.name, num_bytes=path.stat().st_size)
        try:
            is_stored = self._swap(namespace, new, before)
        except ByteQuotaExceeded:
            path.unlink(missing_ok=True)
            raise
        # After StoreUnavailable the file stays: the store may have the record, although its reply was lost.
        if not is_stored:
            path.unlink(missing_ok=True)
            return False
        for old in folder.glob(f"{new.label_id}-*.matches"):
            if old.name != path.name and ((before is not None and old.name == before.file) or _is_old(old, path)):
                old.unlink(missing_ok=True)
        return True

    def mark_told(self, namespace: str, record: MatchRecord) -> None:
        """No effect if the label has another record by now."""
        key = VideoKeys(namespace).matches

        def body(pipe: JobPipeline) -> Step[None]:
            stored = _parse(pipe.hget(key, record.label_id))
            if stored is None or stored.job_id != record.job_id:
                return Step(None)
            return Step(None, _put(key, replace(stored, is_told=True)))

        self._transactions.run(key, body)

    def forget(self, namespace: str, label_ids: Sequence[str]) -> None:
        """Of labels that are removed."""
        keys = VideoKeys(namespace)
        for label_id in label_ids:

            def body(pipe: JobPipeline, label_id: str = label_id) -> Step[None]:
                stored = _parse(pipe.hget(keys.matches, label_id))
                if stored is None:
                    return Step(None)
                num_bytes = stored.num_bytes

                def write(pipe: JobPipeline) -> None:
                    pipe.hdel(keys.matches, label_id)
                    pipe.incrby(keys.match_bytes, -num_bytes)

                return Step(None, write)

            self._transactions.run(keys.matches, body)
            for path in self._folder(namespace).glob(f"{label_id}-*.matches"):
                path.unlink(missing_ok=True)

    def num_bytes(self, namespace: str) -> int:
        with store_errors():
            return int(self._client.get(VideoKeys(namespace).match_bytes) or 0)

    def _swap(self, namespace: str, new: MatchRecord, before: MatchRecord | None) -> bool:
        keys = VideoKeys(namespace)
        added = new.num_bytes - (0 if before is None else before.num_bytes)

        def body(pipe: JobPipeline) -> Step[bool]:
            pipe.watch(keys.match_bytes)
            stored = _parse(pipe.hget(keys.matches, new.label_id))
            if stored is not None and stored.file == new.file:  # stored, but the reply was lost
                return Step(True)
            if not _is_same(stored, before):
                return Step(False)
            if added > 0 and int(pipe.get(keys.match_bytes) or 0) + added > self._max_bytes:
                raise ByteQuotaExceeded("The kept videos' matches would exceed VIDLEX_MAX_KEPT_BYTES")
            put = _put(keys.matches, new)

            def write(pipe: JobPipeline) -> None:
                put(pipe)
                pipe.incrby(keys.match_bytes, added)

            return Step(True, write)

        return self._transactions.run(keys.matches, body)

    def _folder(self, namespace: str) -> Path:
        if not is_namespace(namespace):
            raise ValueError(f"{namespace!r} is no namespace")
        return self._root / namespace


def _put(key: str, record: MatchRecord) -> Callable[[JobPipeline], None]:
    def write(pipe: JobPipeline) -> None:
        pipe.hset(key, record.label_id, json.dumps(asdict(record)))

    return write


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
