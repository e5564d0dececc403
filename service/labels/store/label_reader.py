"""Reading the labels of one namespace. LabelStore adds the writing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.errors import InvalidParameter, NotFound, StoreUnavailable
from vidlex.service.labels.store.changes import Change, Head, parse_read_reply
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.names import fold, normalize_name
from vidlex.service.labels.store.records import Label, Page, label_from_json, matches_text, name_keys
from vidlex.service.labels.store.redis_keys import (
    SCHEMA_VERSION_KEY,
    Keys,
    change_entry_id,
    is_label_id,
    parse_text_entry,
    text_entry,
    text_range,
)
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

SCHEMA_VERSION = 2
"""The layout of keys.py. The migrations bring a store to it."""
MAX_PAGE_LABELS = 1000
_SCAN_LABELS = 500
_MAX_CHANGES_PER_READ = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredLabel:
    """A label and its vector [D] of one encoder; None when it is missing or corrupt."""

    label: Label
    vector: NDArray[np.float32] | None


@dataclass(frozen=True)
class Wanted:
    """What a listing keeps. Category and text are normalised, the parent is an id."""

    category: str | None
    parent: str | None
    text: str

    @property
    def num_checks(self) -> int:
        return (self.category is not None) + (self.parent is not None) + 2 * bool(self.text)

    def accepts(self, label: Label) -> bool:
        return (
            (self.category is None or self.category in label.categories)
            and (self.parent is None or self.parent in label.parents)
            and (not self.text or matches_text(label, self.text))
        )


LabelList = list[Label]
OptionalLabels = list[Label | None]
IdList = list[str]
ChangeList = list[Change]
StoredLabels = list[StoredLabel]
"""Named here, because inside the class ``list`` is the method."""


class LabelReader:
    """See the module's text. Thread-safe; every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, client: redis.Redis, namespace: str = "default") -> None:
        self.namespace = namespace
        self._client: Any = client
        self._keys = Keys(namespace)

    # -- the store as a whole -----------------------------------------------------------------------------------------

    def ping(self) -> None:
        with store_errors():
            self._client.ping()

    def check_schema(self) -> None:
        """Raise StoreUnavailable unless the migrations have brought the store to exactly this code's layout."""
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
        """Number of atomic steps that the namespace has seen: grows by one with each, without holes."""
        return self.head().revision

    def changes(self, after_revision: int, block_ms: int = 0) -> ChangeList:
        """The steps after a revision, oldest first, at most 1000; waits up to ``block_ms`` for the first (0: no wait).

        The oldest ones may be gone: see Change.follows.
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

    def count(self) -> int:
        with store_errors():
            return int(self._client.zcard(self._keys.order))

    def get(self, label_id: str) -> Label:
        """Raises NotFound."""
        with store_errors():
            return self._get_through(self._client, label_id)

    def get_many(self, label_ids: Sequence[str]) -> LabelList:
        """Those of the labels that exist, in the order asked for."""
        with store_errors():
            return self._get_many_through(self._client, label_ids)

    def find(self, name: str) -> Label | None:
        """The label that has this name or alias, after normalisation. Raises LabelTextInvalid."""
        return self.find_many([name])[0]

    def find_many(self, names: Sequence[str]) -> OptionalLabels:
        """``find`` for each of the names, in two round trips."""
        keys = [normalize_name(name) for name in names]
        if not keys:
            return []
        with store_errors():
            owners = [raw.decode() if raw is not None else None for raw in self._client.hmget(self._keys.names, keys)]
        found = {label.id: label for label in self.get_many([owner for owner in owners if owner is not None])}
        return [None if owner is None else found.get(owner) for owner in owners]

    def names_of(self, label_ids: Iterable[str]) -> dict[str, str]:
        """Label ids to names, for those that exist."""
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
        """One page of labels: those after the label ``after``, in the order of creation.

        ``category``, ``parent`` (the id, name or alias of a label) and ``prefix`` are answered from indexes.
        ``prefix`` keeps labels of which a name or alias begins with it and sorts by that text; ``after`` must then
        still be there. ``q`` keeps labels of which a name or alias contains it, which looks at every label until the
        page is full. Where several are given, one index is followed and the rest is checked on each label.

        Raises InvalidParameter, LabelTextInvalid for a category that none can have, NotFound for the parent.
        """
        if not 1 <= limit <= MAX_PAGE_LABELS:
            raise InvalidParameter(f"limit is 1 to {MAX_PAGE_LABELS}")
        if after is not None and not is_label_id(after):
            raise InvalidParameter("after is not a label id")
        wanted = Wanted(
            category=None if category is None else normalize_name(category),
            parent=None if parent is None else self._parent_id(parent),
            text=fold(q) if q else "",
        )
        start = fold(prefix) if prefix else ""
        size = limit + 1 if wanted.num_checks <= (0 if start else 1) else _SCAN_LABELS
        if start:
            pages = self._pages_by_text(start, size, after)
        else:
            pages = self._pages_of_ids(self._index_for(wanted), size, after)
        found: LabelList = []
        for ids in pages:
            found += [label for label in self.get_many(ids) if wanted.accepts(label)]
            if len(found) > limit:
                return Page(found[:limit], has_more=True)
        return Page(found, has_more=False)

    # -- vectors ------------------------------------------------------------------------------------------------------

    def generations(self) -> dict[str, int]:
        """Encoders that have vectors here: fingerprint to D."""
        with store_errors():
            return self._generations_through(self._client)

    def vectors(self, fingerprint: str, batch: int = 1000) -> Iterator[tuple[LabelList, NDArray[np.float32]]]:
        """All labels that have a sound vector of this encoder, with the vectors [n, D], in the order of creation."""
        for rows in self.scan(fingerprint, batch):
            sound = [(row.label, row.vector) for row in rows if row.vector is not None]
            if sound:
                yield [label for label, _ in sound], np.stack([vector for _, vector in sound])

    def missing_vectors(self, fingerprint: str) -> Iterator[Label]:
        """The labels that this encoder has yet to encode: never done, or the stored bytes fail their checksum."""
        for rows in self.scan(fingerprint, 1000):
            yield from (row.label for row in rows if row.vector is None)

    def scan(self, fingerprint: str, batch: int = 1000) -> Iterator[StoredLabels]:
        """All labels in the order of creation, each with its vector of this encoder or None."""
        dim = self.generations().get(fingerprint)
        for ids in self._pages_of_ids(self._keys.order, batch):
            with store_errors():
                rows = self._rows(ids, fingerprint, dim)
            yield rows

    def fetch(self, label_ids: Sequence[str], fingerprint: str) -> StoredLabels:
        """Those of the labels that exist, each with its vector, read at one moment."""
        if not label_ids:
            return []
        with store_errors():
            return self._rows(label_ids, fingerprint, self._generations_through(self._client).get(fingerprint))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _parent_id(self, reference: str) -> str:
        if is_label_id(reference):
            return self.get(reference).id
        found = self.find(reference)
        if found is None:
            raise NotFound("There is no label of the parent's name")
        return found.id

    def _index_for(self, wanted: Wanted) -> str:
        if wanted.parent is not None:
            return self._keys.children(wanted.parent)
        return self._keys.order if wanted.category is None else self._keys.category(wanted.category)

    def _pages_by_text(self, prefix: str, size: int, after: str | None) -> Iterator[IdList]:
        """Ids of the labels with a text that begins with ``prefix``, each once, by the first such text."""
        entry: str | None = None
        if after is not None:
            texts = [text for text in name_keys(self.get(after)) if text.startswith(prefix)]
            if not texts:
                raise InvalidParameter("the label of after no longer begins with prefix: start with the first page")
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
        """Ids in a sorted set, page by page. Steps that happen meanwhile never make it skip or repeat an id."""
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
        # In one transaction: a rename between two reads would marry the old name to the new name's vector.
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

    def _get_through(self, pipe: Any, label_id: str) -> Label:
        raw = pipe.hget(self._keys.records, label_id) if is_label_id(label_id) else None
        if raw is None:
            raise NotFound("There is no label of this id")
        return label_from_json(label_id, raw)

    def _get_many_through(self, pipe: Any, label_ids: Sequence[str]) -> LabelList:
        possible = [label_id for label_id in label_ids if is_label_id(label_id)]
        if not possible:
            return []
        rows = pipe.hmget(self._keys.records, possible)
        return [label_from_json(i, raw) for i, raw in zip(possible, rows, strict=True) if raw is not None]

    def _generations_through(self, pipe: Any) -> dict[str, int]:
        return {key.decode(): int(value) for key, value in pipe.hgetall(self._keys.generations).items()}


def _is_first_text(label: Label, text: str, prefix: str) -> bool:
    """True when no other text of the label that begins with ``prefix`` sorts before ``text``."""
    # By bytes, as the store sorts; code points sort alike in UTF-8.
    return all(other >= text for other in name_keys(label) if other.startswith(prefix))
