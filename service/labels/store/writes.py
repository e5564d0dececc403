"""What one step changes about labels, collected and then queued as few commands.

A label's record and everything that is derived from it (names, texts, order, categories, children) change together
here and nowhere else, so that no label can be half there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vidlex.service.labels.store.records import Label, label_to_json, name_keys
from vidlex.service.labels.store.redis_keys import Keys, text_entry

Value = str | bytes


class LabelWrites:
    """Collects; ``queue`` sends. Within one collection removals are done first."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._fields: dict[str, dict[str, Value]] = defaultdict(dict)
        self._members: dict[str, dict[str, int]] = defaultdict(dict)
        self._lost_fields: dict[str, list[str]] = defaultdict(list)
        self._lost_members: dict[str, list[str]] = defaultdict(list)

    def put(self, label: Label, old: Label | None = None) -> None:
        """A new label, or ``old`` in its new state."""
        self._fields[self._keys.records][label.id] = label_to_json(label)
        if old is None:
            self._members[self._keys.order][label.id] = 0
        self._change_derived(old, label)

    def remove(self, old: Label, generations: Iterable[str]) -> None:
        """The label and its vectors. Its children must be put without it in the same step."""
        self._lost_fields[self._keys.records].append(old.id)
        self._lost_members[self._keys.order].append(old.id)
        self._change_derived(old, None)
        self.drop_vectors(old.id, generations)

    def put_vector(self, fingerprint: str, label_id: str, raw: bytes) -> None:
        self._fields[self._keys.generations][fingerprint] = str((len(raw) - 4) // 4)
        self._fields[self._keys.vectors(fingerprint)][label_id] = raw

    def drop_vectors(self, label_id: str, generations: Iterable[str]) -> None:
        for fingerprint in generations:
            self._lost_fields[self._keys.vectors(fingerprint)].append(label_id)

    def queue(self, pipe: Any) -> None:
        for key, fields in self._lost_fields.items():
            pipe.hdel(key, *fields)
        for key, members in self._lost_members.items():
            pipe.zrem(key, *members)
        for key, mapping in self._fields.items():
            pipe.hset(key, mapping=mapping)
        for key, scores in self._members.items():
            pipe.zadd(key, scores)

    def _change_derived(self, old: Label | None, new: Label | None) -> None:
        label_id = (old or new).id  # type: ignore[union-attr]
        before, after = _texts(old), _texts(new)
        for text in before - after:
            self._lost_fields[self._keys.names].append(text)
            self._lost_members[self._keys.texts].append(text_entry(text, label_id))
        for text in after - before:
            self._fields[self._keys.names][text] = label_id
            self._members[self._keys.texts][text_entry(text, label_id)] = 0
        before, after = _indexes(self._keys, old), _indexes(self._keys, new)
        for key in before - after:
            self._lost_members[key].append(label_id)
        for key in after - before:
            self._members[key][label_id] = 0


def _texts(label: Label | None) -> set[str]:
    return set() if label is None else set(name_keys(label))


def _indexes(keys: Keys, label: Label | None) -> set[str]:
    """The sorted sets that hold the label's id because of what its record says."""
    if label is None:
        return set()
    return {keys.category(c) for c in label.categories} | {keys.children(parent) for parent in label.parents}
