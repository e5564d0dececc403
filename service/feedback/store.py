"""The judgements of all namespaces, in the label store's server.

Every write is one transaction: it watches the namespace's counter, reads, and sends all as one MULTI. A judgement takes
the place of an older one of the same video or segment and label, so that a repeated request changes nothing.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import redis

from vidlex.service.errors import ByteQuotaExceeded, NotFound, StoreUnavailable
from vidlex.service.feedback.keys import FeedbackKeys
from vidlex.service.feedback.records import (
    Judgement,
    ThresholdVersion,
    judgement_from_json,
    to_json,
    version_from_json,
)
from vidlex.service.ids import is_id
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import Keys
from vidlex.service.labels.store.redis_types import Guard, RedisPipeline, RedisWrites, accept_any, typed_client

T = TypeVar("T")

MAX_PER_LABEL = 2000  # judgements; the oldest go first
MAX_BYTES = 64 * 2**20  # of a namespace's judgements
MAX_VERSIONS = 100  # of a label's threshold; the oldest go first
_OVERHEAD_BYTES = 250  # of a judgement: its subject, its id and their places
_DEADLINE_SECONDS = 10.0
_NUM_LOCKS = 64
_PURGE_LABELS = 500  # looked up at a time

Write = Callable[[RedisWrites], None]


@dataclass(frozen=True)
class JudgementPage:
    data: list[Judgement]  # newest first
    has_more: bool


@dataclass(frozen=True)
class LabelCount:
    label_id: str
    num_judgements: int


@dataclass(frozen=True, eq=False)
class _LabelChange:
    label_id: str
    new: dict[str, Judgement]  # by subject
    raw: dict[str, str]  # the same as JSON
    replaced: Sequence[Judgement]
    surplus: Sequence[Judgement]
    count: int  # from then on
    grown: int  # bytes

    def write(self, pipe: RedisWrites, keys: FeedbackKeys) -> None:
        _drop_fields(pipe, keys, self.label_id, self.surplus)
        if self.replaced:
            pipe.hdel(keys.ids, *(judgement.id for judgement in self.replaced))
        pipe.hset(keys.judgements(self.label_id), mapping=self.raw)
        places = {judgement.id: f"{self.label_id} {subject}" for subject, judgement in self.new.items()}
        pipe.hset(keys.ids, mapping=places)


class FeedbackStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        guard: Guard = accept_any,
        max_per_label: int = MAX_PER_LABEL,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._client = typed_client(client)
        self._guard = guard
        self._max_per_label = max_per_label
        self._max_bytes = max_bytes
        # Writers of a namespace queue here, which avoids conflicts among those of one process.
        self._locks = [threading.Lock() for _ in range(_NUM_LOCKS)]

    # --- judgements

    def add(self, namespace: str, judgements: Sequence[Judgement]) -> dict[str, int]:
        """Durable on return, all or none. Returns the number of judgements of each label that has a new one.

        Raises ByteQuotaExceeded.
        """
        newest = {(judgement.label_id, judgement.subject): judgement for judgement in judgements}
        by_label: dict[str, dict[str, Judgement]] = defaultdict(dict)
        for (label_id, subject), judgement in newest.items():
            by_label[label_id][subject] = judgement
        try:
            return self._run(namespace, lambda pipe, keys: self._add(pipe, keys, by_label))
        except ByteQuotaExceeded:
            if not self._remove_labels_that_are_gone(namespace):
                raise
        return self._run(namespace, lambda pipe, keys: self._add(pipe, keys, by_label))

    def judgements(self, namespace: str, label_id: str) -> list[Judgement]:
        """All of a label, oldest first."""
        with store_errors():
            rows = self._client.hgetall(FeedbackKeys(namespace).judgements(label_id))
        return sorted(map(judgement_from_json, rows.values()), key=lambda judgement: judgement.id)

    def page(self, namespace: str, label_id: str, *, limit: int, after: str | None = None) -> JudgementPage:
        newest_first = self.judgements(namespace, label_id)[::-1]
        rest = [judgement for judgement in newest_first if after is None or judgement.id < after]
        return JudgementPage(rest[:limit], len(rest) > limit)

    def labels(self, namespace: str) -> list[LabelCount]:
        """Those with judgements, in the order of their ids."""
        with store_errors():
            found = self._client.hgetall(FeedbackKeys(namespace).labels)
        return [LabelCount(label_id.decode(), int(number)) for label_id, number in sorted(found.items()) if int(number)]

    def remove(self, namespace: str, judgement_id: str) -> str:
        """Returns the id of its label. Raises NotFound."""

        def body(pipe: RedisPipeline, keys: FeedbackKeys) -> tuple[str, Write]:
            place = pipe.hget(keys.ids, judgement_id) if is_id(judgement_id, "jdg") else None
            if place is None:
                raise NotFound("There is no such judgement")
            label_id, _, subject = place.decode().partition(" ")
            (raw,) = pipe.hmget(keys.judgements(label_id), [subject])
            gone = [] if raw is None else [judgement_from_json(raw)]
            return label_id, lambda write: self._drop(write, keys, label_id, gone, 0 if raw is None else _size(raw))

        return self._run(namespace, body)

    def _add(
        self, pipe: RedisPipeline, keys: FeedbackKeys, by_label: dict[str, dict[str, Judgement]]
    ) -> tuple[dict[str, int], Write]:
        changes = [self._change(pipe, keys, label_id, new) for label_id, new in by_label.items()]
        counts = {change.label_id: change.count for change in changes}
        grown = sum(change.grown for change in changes)
        num_bytes = int(pipe.get(keys.num_bytes) or 0) + grown
        if num_bytes > self._max_bytes and grown > 0:
            raise ByteQuotaExceeded(f"The feedback of a namespace may take {self._max_bytes} bytes; delete some")

        def write(pipe: RedisWrites) -> None:
            for change in changes:
                change.write(pipe, keys)
            pipe.hset(keys.labels, mapping=counts)
            pipe.incrby(keys.num_bytes, grown)

        return counts, write

    def _change(
        self, pipe: RedisPipeline, keys: FeedbackKeys, label_id: str, new: dict[str, Judgement]
    ) -> _LabelChange:
        raw = {subject: to_json(judgement) for subject, judgement in new.items()}
        replaced = [row for row in pipe.hmget(keys.judgements(label_id), list(raw)) if row is not None]
        count = pipe.hlen(keys.judgements(label_id)) + len(raw) - len(replaced)
        surplus: list[bytes] = []
        if count > self._max_per_label:
            rows = pipe.hgetall(keys.judgements(label_id)).items()
            others = [row for subject, row in rows if subject.decode() not in raw]
            others.sort(key=lambda row: judgement_from_json(row).id)
            surplus = others[: count - self._max_per_label]
        grown = sum(_size(text.encode()) for text in raw.values()) - sum(map(_size, [*replaced, *surplus]))
        return _LabelChange(
            label_id,
            new,
            raw,
            replaced=[judgement_from_json(row) for row in replaced],
            surplus=[judgement_from_json(row) for row in surplus],
            count=count - len(surplus),
            grown=grown,
        )

    def _drop(self, pipe: RedisWrites, keys: FeedbackKeys, label_id: str, gone: Sequence[Judgement], size: int) -> None:
        _drop_fields(pipe, keys, label_id, gone)
        pipe.hincrby(keys.labels, label_id, -len(gone))
        pipe.incrby(keys.num_bytes, -size)

    def _remove_labels_that_are_gone(self, namespace: str) -> bool:
        """Judgements of labels that do not exist any more. True if there were some."""
        found = False
        ids = [count.label_id for count in self.labels(namespace)]
        for start in range(0, len(ids), _PURGE_LABELS):
            with store_errors():
                chunk = ids[start : start + _PURGE_LABELS]
                records = self._client.hmget(Keys(namespace).records, chunk)
            for label_id, record in zip(chunk, records, strict=True):
                if record is None:
                    self._run(namespace, lambda pipe, keys, i=label_id: self._remove_label(pipe, keys, i))  # type: ignore[misc]
                    found = True
        return found

    def _remove_label(self, pipe: RedisPipeline, keys: FeedbackKeys, label_id: str) -> tuple[None, Write]:
        rows = list(pipe.hgetall(keys.judgements(label_id)).values())
        size = sum(map(_size, rows))
        ids = [judgement_from_json(row).id for row in rows]

        def write(pipe: RedisWrites) -> None:
            if ids:
                pipe.hdel(keys.ids, *ids)
            pipe.unlink(keys.judgements(label_id), keys.versions(label_id))
            pipe.hdel(keys.labels, label_id)
            pipe.incrby(keys.num_bytes, -size)

        return None, write

    # --- versions of thresholds

    def versions(self, namespace: str, label_id: str) -> list[ThresholdVersion]:
        """Newest first."""
        with store_errors():
            rows = self._client.hgetall(FeedbackKeys(namespace).versions(label_id))
        return sorted(map(version_from_json, rows.values()), key=lambda version: version.id, reverse=True)

    def version_writer(self, namespace: str, version: ThresholdVersion) -> Write:
        """What a transaction that changes the label has to write with it."""
        keys = FeedbackKeys(namespace)
        old = [kept.id for kept in self.versions(namespace, version.label_id)[MAX_VERSIONS - 1 :]]

        def write(pipe: RedisWrites) -> None:
            pipe.hset(keys.versions(version.label_id), version.id, to_json(version))
            if old:
                pipe.hdel(keys.versions(version.label_id), *old)

        return write

    # --- transactions

    def _run(self, namespace: str, body: Callable[[RedisPipeline, FeedbackKeys], tuple[T, Write]]) -> T:
        """``body`` reads through the pipe, may raise, and runs again after a conflict."""
        keys = FeedbackKeys(namespace)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        lock = self._locks[zlib.crc32(namespace.encode()) % _NUM_LOCKS]
        if not lock.acquire(timeout=_DEADLINE_SECONDS):
            raise StoreUnavailable("The label store is too busy", internal="writers queue longer than the deadline")
        try:
            while True:
                with store_errors(), self._client.pipeline(transaction=True) as pipe:
                    try:
                        pipe.watch(keys.revision)
                        self._guard(pipe)
                        result, write = body(pipe, keys)
                        pipe.multi()
                        write(pipe)
                        pipe.incrby(keys.revision, 1)
                        pipe.execute()
                        return result
                    except redis.WatchError as error:
                        if time.monotonic() > deadline:
                            raise StoreUnavailable("The label store is too busy", internal=repr(error)) from error
                time.sleep(random.uniform(0, 0.02))
        finally:
            lock.release()


def _size(raw: bytes) -> int:
    return len(raw) + _OVERHEAD_BYTES


def _drop_fields(pipe: RedisWrites, keys: FeedbackKeys, label_id: str, gone: Sequence[Judgement]) -> None:
    if gone:
        pipe.hdel(keys.judgements(label_id), *(judgement.subject for judgement in gone))
        pipe.hdel(keys.ids, *(judgement.id for judgement in gone))
