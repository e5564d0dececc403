"""Collects the writes of one step and queues them as few commands.

A label's record and everything derived from it are written only here, so that they always change together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vidlex.service import audit
from vidlex.service.labels.store.label_size import label_bytes
from vidlex.service.labels.store.records import Label, client_fields, label_to_json, normalized_names
from vidlex.service.labels.store.redis_keys import Keys, text_entry
from vidlex.service.labels.store.redis_types import RedisWrites, Value


class LabelWrites:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._fields: dict[str, dict[str, Value]] = defaultdict(dict)
        self._members: dict[str, dict[str, float]] = defaultdict(dict)
        self._removed_fields: dict[str, list[str]] = defaultdict(list)
        self._removed_members: dict[str, list[str]] = defaultdict(list)
        self._removed_keys: list[str] = []
        self._added_bytes = 0
        self._changed: list[tuple[Label | None, Label | None]] = []  # before, after

    def put(self, label: Label, old: Label | None = None) -> None:
        self._changed.append((old, label))
        self._fields[self._keys.records][label.id] = label_to_json(label)
        if old is None:
            self._members[self._keys.order][label.id] = 0
        self._update_derived(old, label)

    def put_record(self, label: Label) -> None:
        """Only the record, for a restore, which calls ``put_derived`` once every record is there."""
        self._fields[self._keys.records][label.id] = label_to_json(label)
        self._members[self._keys.order][label.id] = 0

    def put_derived(self, label: Label) -> None:
        """What follows from the record: its places in indexes and its size."""
        self._update_derived(None, label)

    def remove_record(self, label_id: str, generations: Iterable[str]) -> None:
        self._removed_fields[self._keys.records].append(label_id)
        self._removed_members[self._keys.order].append(label_id)
        self.drop_vectors(label_id, generations)

    def remove(self, old: Label, generations: Iterable[str]) -> None:
        """Also removes its vectors. The same step must put its children without this parent."""
        self._changed.append((old, None))
        self.remove_record(old.id, generations)
        self._update_derived(old, None)

    def put_vector(self, fingerprint: str, label_id: str, raw: bytes) -> None:
        self._fields[self._keys.generations][fingerprint] = str((len(raw) - 4) // 4)
        self._fields[self._keys.vectors(fingerprint)][label_id] = raw

    def drop_children(self, parent_id: str, label_ids: Iterable[str]) -> None:
        for label_id in label_ids:
            self._removed_members[self._keys.children(parent_id)].append(label_id)

    def drop_vectors(self, label_id: str, generations: Iterable[str]) -> None:
        for fingerprint in generations:
            self._removed_fields[self._keys.vectors(fingerprint)].append(label_id)

    def clear(self, generations: Iterable[str]) -> None:
        """For the step that removes the last label."""
        self._removed_keys += [self._keys.num_bytes, self._keys.generations, *map(self._keys.vectors, generations)]

    def queue(self, pipe: RedisWrites) -> None:
        # Removals first: a rename drops all of a label's vectors and stores a new one.
        for key, fields in self._removed_fields.items():
            pipe.hdel(key, *fields)
        for key, members in self._removed_members.items():
            pipe.zrem(key, *members)
        for key, mapping in self._fields.items():
            pipe.hset(key, mapping=mapping)
        for key, scores in self._members.items():
            pipe.zadd(key, scores)
        if self._added_bytes:
            pipe.incrby(self._keys.num_bytes, self._added_bytes)
        if self._removed_keys:
            pipe.unlink(*self._removed_keys)

    def record(self) -> None:
        """In the audit log, once the step is stored."""
        for old, new in self._changed:
            action = "label.create" if old is None else "label.remove" if new is None else "label.update"
            before, after = (None if label is None else _facts(label) for label in (old, new))
            label_id = (new or old).id  # type: ignore[union-attr]
            audit.record(action, label_id, before=before, after=after, namespace=self._keys.namespace)

    def _update_derived(self, old: Label | None, new: Label | None) -> None:
        label_id = (old or new).id  # type: ignore[union-attr]
        self._added_bytes += sum(map(label_bytes, filter(None, [new]))) - sum(map(label_bytes, filter(None, [old])))
        before, after = _texts(old), _texts(new)
        for text in before - after:
            self._removed_fields[self._keys.names].append(text)
            self._removed_members[self._keys.texts].append(text_entry(text, label_id))
        for text in after - before:
            self._fields[self._keys.names][text] = label_id
            self._members[self._keys.texts][text_entry(text, label_id)] = 0
        before, after = _indexes(self._keys, old), _indexes(self._keys, new)
        for key in before - after:
            self._removed_members[key].append(label_id)
        for key in after - before:
            self._members[key][label_id] = 0


def _facts(label: Label) -> dict[str, Any]:
    return {**vars(client_fields(label)), "revision": label.revision}


def _texts(label: Label | None) -> set[str]:
    return set() if label is None else set(normalized_names(label))


def _indexes(keys: Keys, label: Label | None) -> set[str]:
    if label is None:
        return set()
    return {keys.category(c) for c in label.categories} | {keys.children(parent) for parent in label.parents}
