"""Reads the labels of one namespace."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.bounds import MAX_PAGE_BYTES
from vidlex.service.errors import InvalidParameter, LabelCorrupt, NotFound, StoreUnavailable, VolatileStore
from vidlex.service.labels.store.calibrations import Calibration, CalibrationCorrupt, calibration_from_json
from vidlex.service.labels.store.changes import Change, Head, parse_read_reply
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.metadata_limits import sent_bytes
from vidlex.service.labels.store.names import fold, normalize_name
from vidlex.service.labels.store.records import (
    Label,
    Page,
    RecordCorrupt,
    label_from_json,
    matches_text,
    normalized_names,
)
from vidlex.service.labels.store.redis_keys import (
    RESTORE_STATE_KEY,
    SCHEMA_VERSION_KEY,
    Keys,
    change_entry_id,
    is_fingerprint,
    is_label_id,
    parse_text_entry,
    text_entry,
    text_range,
)
from vidlex.service.labels.store.redis_types import Guard, RedisReads, accept_any, typed_client
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

SCHEMA_VERSION = 4
RESTORING = "The label store is being restored; if the restore was interrupted, run it again"
MAX_PAGE_LABELS = 1000
_READ_LABELS = 100  # at once: with all their metadata, 2 MB
_ENTRY_BYTES = 600  # of a label's other members in a response
_MAX_CHANGES_PER_READ = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredLabel:
    label: IndexedLabel
    vector: NDArray[np.float32] | None  # [D]; None if missing or corrupt


@dataclass(frozen=True)
class LabelFilter:
    category: str | None  # normalised
    parent: str | None  # label id
    text: str  # normalised

    def is_indexed(self, *, with_prefix: bool) -> bool:
        """Whether one index, of the prefix if there is one, already selects exactly the matching labels."""
        num_indexed = (self.category is not None) + (self.parent is not None)
        return not self.text and num_indexed <= (0 if with_prefix else 1)

    def accepts(self, label: Label) -> bool:
        return (
            (self.category is None or self.category in label.categories)
            and (self.parent is None or self.parent in label.parents)
            and (not self.text or matches_text(label, self.text))
        )


# Aliases, because ``list`` is a method inside the class.
LabelList = list[Label]
OptionalLabels = list[Label | None]
IdList = list[str]
ChangeList = list[Change]
StoredLabels = list[StoredLabel]


class LabelReader:
    """Thread-safe. Every method raises StoreUnavailable; ``get`` also NotFound and LabelCorrupt.

    A label whose record is damaged is quarantined: it is left out wherever labels are listed, and
    ``vidlex labels verify --repair`` brings it back or sets it aside.
    """

    def __init__(self, client: redis.Redis, namespace: str = "default", *, guard: Guard = accept_any) -> None:
        self.namespace = namespace
        self._client = typed_client(client)
        self._keys = Keys(namespace)
        self._guard = guard
        self._quarantined: set[str] = set()

    @property
    def num_quarantined(self) -> int:
        """Of the labels read so far."""
        return len(self._quarantined)

    # -- the store as a whole -----------------------------------------------------------------------------------------

    def ping(self) -> None:
        with store_errors():
            self._client.ping()

    def check_server(self) -> None:
        """Raises StoreLost if the server no longer has the data that was opened."""
        with store_errors(), suppress(VolatileStore):  # what it still has can be read
            self._guard(self._client)

    def check_schema(self) -> None:
        with store_errors():
            raw = self._client.get(SCHEMA_VERSION_KEY)
            if self._client.exists(RESTORE_STATE_KEY):
                raise StoreUnavailable(RESTORING)
        version = 0 if raw is None else int(raw)
        if version != SCHEMA_VERSION:
            raise StoreUnavailable(
                "The label store has another schema than this version of the service",
                internal=f"schema {version} in the store, {SCHEMA_VERSION} expected; run the migrations",
            )

    def head(self) -> Head:
        with store_errors():
            return read_head(self._client, self._keys)

    def revision(self) -> int:
        return self.head().revision

    def changes(self, after_revision: int, block_ms: int = 0) -> ChangeList:
        """Up to 1000 steps after a revision, oldest first. Waits up to ``block_ms`` for the first one.

        The oldest steps may have been trimmed, see Change.follows.
        """
        with store_errors():
            return parse_read_reply(
                self._client.xread(
                    {self._keys.changes: change_entry_id(after_revision)},
                    count=_MAX_CHANGES_PER_READ,
                    block=block_ms if block_ms > 0 else None,
                )
            )

    # -- labels -------------------------------------------------------------------------------------------------------

    def get(self, label_id: str) -> Label:
        with store_errors():
            return self._get_via(self._client, label_id)

    def get_many(self, label_ids: Sequence[str]) -> LabelList:
        """The existing ones of the labels, in the given order."""
        with store_errors():
            return self._get_many_via(self._client, label_ids)

    def find(self, name: str) -> Label | None:
        """By name or alias, after normalisation. Raises LabelTextInvalid."""
        return self.find_many([name])[0]

    def find_many(self, names: Sequence[str]) -> OptionalLabels:
        keys = [normalize_name(name) for name in names]
        if not keys:
            return []
        with store_errors():
            owners = [None if raw is None else _text_of(raw) for raw in self._client.hmget(self._keys.names, keys)]
        found = {label.id: label for label in self.get_many([owner for owner in owners if owner is not None])}
        return [None if owner is None else found.get(owner) for owner in owners]

    def names_of(self, label_ids: Iterable[str]) -> dict[str, str]:
        return {label.id: label.name for label in self.get_many(list(dict.fromkeys(label_ids)))}

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        category: str | None = None,
        q: str | None = None,
        *,
        parent: str | None = None,
        prefix: str | None = None,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> Page:
        """The page of labels after the label ``after``, in the order of creation.

        ``parent`` is an id, name or alias. ``prefix`` selects labels with a name or alias that begins with it, and
        sorts by that text; ``after`` must then still exist. ``q`` selects labels with a name or alias that contains it.

        The page ends early, with at least one label, at about ``max_bytes`` of JSON.

        Raises InvalidParameter, LabelTextInvalid (invalid category), NotFound (unknown parent).
        """
        if not 1 <= limit <= MAX_PAGE_LABELS:
            raise InvalidParameter(f"limit is 1 to {MAX_PAGE_LABELS}")
        if after is not None and not is_label_id(after):
            raise InvalidParameter("after is not a label id")
        conditions = LabelFilter(
            category=None if category is None else normalize_name(category),
            parent=None if parent is None else self._parent_id(parent),
            text=fold(q) if q else "",
        )
        # One index is followed; the other conditions are checked on each label.
        start = fold(prefix) if prefix else ""
        size = min(limit + 1, _READ_LABELS) if conditions.is_indexed(with_prefix=bool(start)) else _READ_LABELS
        if start:
            pages = self._pages_by_text(start, size, after)
        else:
            pages = self._pages_of_ids(self._index_for(conditions), size, after)
        found: LabelList = []
        num_bytes = 0
        for ids in pages:
            for label in self.get_many(ids):
                if not conditions.accepts(label):
                    continue
                num_bytes += _ENTRY_BYTES + sent_bytes(label.name, label.aliases, label.categories, label.metadata)
                if len(found) == limit or (found and num_bytes > max_bytes):
                    return Page(found, has_more=True)
                found.append(label)
        return Page(found, has_more=False)

    # -- vectors ------------------------------------------------------------------------------------------------------

    def generations(self) -> dict[str, int]:  # encoder fingerprint to D
        with store_errors():
            return self._generations_via(self._client)

    def scan(self, fingerprint: str, batch: int = 1000) -> Iterator[StoredLabels]:
        dim = self.generations().get(fingerprint)
        self._quarantined.clear()  # every record is read again
        for ids in self._pages_of_ids(self._keys.order, batch):  # in the order of creation
            with store_errors():
                rows = self._rows(ids, fingerprint, dim)
            yield rows

    def fetch(self, label_ids: Sequence[str], fingerprint: str) -> StoredLabels:
        if not label_ids:
            return []
        with store_errors():
            return self._rows(label_ids, fingerprint, self._generations_via(self._client).get(fingerprint))

    def calibration(self, fingerprint: str) -> Calibration | None:
        with store_errors():
            raw = self._client.hget(self._keys.calibrations, fingerprint)
        return None if raw is None else self._parse_calibration(fingerprint, raw)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _parent_id(self, reference: str) -> str:
        if is_label_id(reference):
            return self.get(reference).id
        found = self.find(reference)
        if found is None:
            raise NotFound("The parent was not found")
        return found.id

    def _index_for(self, conditions: LabelFilter) -> str:
        if conditions.parent is not None:
            return self._keys.children(conditions.parent)
        return self._keys.order if conditions.category is None else self._keys.category(conditions.category)

    def _pages_by_text(self, prefix: str, size: int, after: str | None) -> Iterator[IdList]:
        entry: str | None = None
        if after is not None:
            texts = [text for text in normalized_names(self.get(after)) if text.startswith(prefix)]
            if not texts:
                raise InvalidParameter("The label of after no longer matches prefix; start again with the first page")
            entry = text_entry(min(texts), after)
        while True:
            low, high = text_range(prefix, entry)
            with store_errors():
                members = self._client.zrange(self._keys.texts, low, high, bylex=True, offset=0, num=size)
            if members:
                entries = [parse_text_entry(member) for member in members]
                labels = {label.id: label for label in self.get_many([label_id for _, label_id in entries])}
                yield [i for text, i in entries if i in labels and _is_first_text(labels[i], text, prefix)]
                entry = text_entry(*entries[-1])
            if len(members) < size:
                return

    def _pages_of_ids(self, index: str, size: int, after: str | None = None) -> Iterator[IdList]:
        # Pages by id, not by offset: concurrent steps cause no skipped or repeated ids.
        low = b"-" if after is None else b"(" + after.encode()
        while True:
            with store_errors():
                members = self._client.zrange(index, low, "+", bylex=True, offset=0, num=size)
            if members:
                yield [i for i in map(_text_of, members) if is_label_id(i)]
            if len(members) < size:
                return
            low = b"(" + members[-1]

    def _rows(self, label_ids: Sequence[str], fingerprint: str, dim: int | None) -> StoredLabels:
        # One transaction: a rename between two reads would combine the old name with the new name's vector.
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hmget(self._keys.records, list(label_ids))
            pipe.hmget(self._keys.vectors(fingerprint), list(label_ids))
            records, vectors = pipe.execute()
        rows = []
        for label_id, record, raw in zip(label_ids, records, vectors, strict=True):
            label = self._parse(label_id, record)
            if label is not None:
                rows.append(StoredLabel(IndexedLabel.of(label), self._decode(label_id, raw, dim)))
        return rows

    def _parse(self, label_id: str, raw: bytes | None) -> Label | None:
        """None for a missing or damaged record."""
        try:
            label = None if raw is None else label_from_json(label_id, raw)
        except RecordCorrupt as error:
            if label_id not in self._quarantined:
                _log.error("label %s of namespace %s is quarantined: %s", label_id, self.namespace, error)
            self._quarantined.add(label_id)
            return None
        self._quarantined.discard(label_id)
        return label

    def _decode(self, label_id: str, raw: bytes | None, dim: int | None) -> NDArray[np.float32] | None:
        if raw is None or dim is None:
            return None
        try:
            return decode_vector(raw, dim)
        except VectorCorrupt as error:
            _log.error("label %s of namespace %s has a corrupt vector: %s", label_id, self.namespace, error)
            return None

    def _parse_calibration(self, fingerprint: str, raw: bytes) -> Calibration | None:
        try:
            return calibration_from_json(raw)
        except CalibrationCorrupt as error:
            _log.error("namespace %s has a corrupt calibration of %s: %s", self.namespace, fingerprint, error)
            return None

    def _get_via(self, reads: RedisReads, label_id: str) -> Label:
        raw = reads.hget(self._keys.records, label_id) if is_label_id(label_id) else None
        if raw is None:
            raise NotFound("No label has this id")
        label = self._parse(label_id, raw)
        if label is None:
            raise LabelCorrupt
        return label

    def _get_many_via(self, reads: RedisReads, label_ids: Sequence[str]) -> LabelList:
        possible = [label_id for label_id in label_ids if is_label_id(label_id)]
        if not possible:
            return []
        rows = reads.hmget(self._keys.records, possible)
        labels = [self._parse(label_id, raw) for label_id, raw in zip(possible, rows, strict=True)]
        return [label for label in labels if label is not None]

    def _generations_via(self, reads: RedisReads) -> dict[str, int]:
        # What is damaged counts as missing: the labels are encoded again.
        return {
            key.decode(): int(value)
            for key, value in reads.hgetall(self._keys.generations).items()
            if is_fingerprint(key) and value.isdigit()
        }


def _text_of(raw: bytes) -> str:
    # An id that is damaged so that it is no text is no label's id.
    return raw.decode("utf-8", "replace")


def _is_first_text(label: Label, text: str, prefix: str) -> bool:
    # The store sorts by bytes, which in UTF-8 is the order of code points.
    return all(other >= text for other in normalized_names(label) if other.startswith(prefix))
