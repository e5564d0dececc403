"""Reads the labels of one namespace."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.errors import InvalidParameter, NotFound, StoreUnavailable
from vidlex.service.labels.store.calibrations import Calibration, CalibrationCorrupt, calibration_from_json
from vidlex.service.labels.store.changes import Change, Head, parse_read_reply
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.names import fold, normalize_name
from vidlex.service.labels.store.records import Label, Page, label_from_json, matches_text, normalized_names
from vidlex.service.labels.store.redis_keys import (
    SCHEMA_VERSION_KEY,
    Keys,
    change_entry_id,
    is_label_id,
    parse_text_entry,
    text_entry,
    text_range,
)
from vidlex.service.labels.store.redis_types import RedisReads, typed_client
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

SCHEMA_VERSION = 2
MAX_PAGE_LABELS = 1000
_SCAN_LABELS = 500
_MAX_CHANGES_PER_READ = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredLabel:
    label: Label
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
    """Thread-safe. Every method raises StoreUnavailable; ``get`` also NotFound."""

    def __init__(self, client: redis.Redis, namespace: str = "default") -> None:
        self.namespace = namespace
        self._client = typed_client(client)
        self._keys = Keys(namespace)

    # -- the store as a whole -----------------------------------------------------------------------------------------

    def ping(self) -> None:
        with store_errors():
            self._client.ping()

    def check_schema(self) -> None:
        with store_errors():
            raw = self._client.get(SCHEMA_VERSION_KEY)
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
            owners = [raw.decode() if raw is not None else None for raw in self._client.hmget(self._keys.names, keys)]
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
    ) -> Page:
        """The page of labels after the label ``after``, in the order of creation.

        ``parent`` is an id, name or alias. ``prefix`` selects labels with a name or alias that begins with it, and
        sorts by that text; ``after`` must then still exist. ``q`` selects labels with a name or alias that contains it.

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
        size = limit + 1 if conditions.is_indexed(with_prefix=bool(start)) else _SCAN_LABELS
        if start:
            pages = self._pages_by_text(start, size, after)
        else:
            pages = self._pages_of_ids(self._index_for(conditions), size, after)
        found: LabelList = []
        for ids in pages:
            found += [label for label in self.get_many(ids) if conditions.accepts(label)]
            if len(found) > limit:
                return Page(found[:limit], has_more=True)
        return Page(found, has_more=False)

    # -- vectors ------------------------------------------------------------------------------------------------------

    def generations(self) -> dict[str, int]:  # encoder fingerprint to D
        with store_errors():
            return self._generations_via(self._client)

    def scan(self, fingerprint: str, batch: int = 1000) -> Iterator[StoredLabels]:
        dim = self.generations().get(fingerprint)
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
        low = "-" if after is None else f"({after}"
        while True:
            with store_errors():
                ids = [i.decode() for i in self._client.zrange(index, low, "+", bylex=True, offset=0, num=size)]
            if ids:
                yield ids
            if len(ids) < size:
                return
            low = f"({ids[-1]}"

    def _rows(self, label_ids: Sequence[str], fingerprint: str, dim: int | None) -> StoredLabels:
        # One transaction: a rename between two reads would combine the old name with the new name's vector.
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hmget(self._keys.records, list(label_ids))
            pipe.hmget(self._keys.vectors(fingerprint), list(label_ids))
            records, vectors = pipe.execute()
        return [
            StoredLabel(label_from_json(label_id, record), self._decode(label_id, raw, dim))
            for label_id, record, raw in zip(label_ids, records, vectors, strict=True)
            if record is not None
        ]

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
        return label_from_json(label_id, raw)

    def _get_many_via(self, reads: RedisReads, label_ids: Sequence[str]) -> LabelList:
        possible = [label_id for label_id in label_ids if is_label_id(label_id)]
        if not possible:
            return []
        rows = reads.hmget(self._keys.records, possible)
        return [label_from_json(i, raw) for i, raw in zip(possible, rows, strict=True) if raw is not None]

    def _generations_via(self, reads: RedisReads) -> dict[str, int]:
        return {key.decode(): int(value) for key, value in reads.hgetall(self._keys.generations).items()}


def _is_first_text(label: Label, text: str, prefix: str) -> bool:
    # The store sorts by bytes, which in UTF-8 is the order of code points.
    return all(other >= text for other in normalized_names(label) if other.startswith(prefix))
