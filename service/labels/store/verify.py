"""Is a namespace whole? Everything that is derived from the labels' records is derived anew and compared.

Reads everything into memory: for an operator and for tests, not for the service.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import redis

from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.records import Label, label_from_json, name_keys
from vidlex.service.labels.store.redis_keys import (
    ALL_CHANGES,
    Keys,
    is_label_id,
    parse_change_entry_id,
    parse_key,
    text_entry,
)
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

_PAGE = 1000
_TRIES = 5


def namespaces(client: redis.Redis) -> list[str]:
    """All that were ever written to, sorted."""
    with store_errors():
        found = [parse_key(key) for key in client.scan_iter(match=ALL_CHANGES, count=_PAGE)]
    return sorted(parsed.namespace for parsed in found if parsed is not None)


def verify_namespace(client: redis.Redis, namespace: str = "default") -> list[str]:
    """What is wrong, one line each; empty when all is well. Raises StoreUnavailable.

    Checked while nobody writes, or again when somebody did; a namespace that never rests is said to be so.
    """
    keys = Keys(namespace)
    for _ in range(_TRIES):
        with store_errors():
            before = read_head(client, keys)
            problems = list(_problems(client, keys))
            if read_head(client, keys) == before:
                return problems
    return ["the namespace was written to all the time; what was found says nothing"]


def _problems(client: Any, keys: Keys) -> Iterator[str]:
    revision = read_head(client, keys).revision
    labels: dict[str, Label] = {}
    for label_id, raw in client.hscan_iter(keys.records, count=_PAGE):
        try:
            labels[label_id.decode()] = label_from_json(label_id.decode(), raw)
        except (ValueError, KeyError, TypeError) as error:
            yield f"the record of {label_id!r} cannot be read: {error!r}"
    yield from (f"{label_id!r} is no label id" for label_id in labels if not is_label_id(label_id))
    yield from (
        f"{x.id} is of revision {x.revision}, after {revision}" for x in labels.values() if x.revision > revision
    )

    names: dict[str, str] = {}
    indexes: dict[str, set[str]] = defaultdict(set)
    for label in labels.values():
        for text in name_keys(label):
            if text in names:
                yield f"{text!r} belongs to {names[text]} and to {label.id}"
            names[text] = label.id
        for category in label.categories:
            indexes[keys.category(category)].add(label.id)
        for parent in label.parents:
            indexes[keys.children(parent)].add(label.id)
            if parent not in labels:
                yield f"{label.id} names {parent} as a parent, which is not there"
    indexes[keys.order] = set(labels)
    indexes[keys.texts] = {text_entry(text, label_id) for text, label_id in names.items()}
    stored = {key.decode(): value.decode() for key, value in client.hscan_iter(keys.names, count=_PAGE)}
    yield from _differences(keys.names, set(names.items()), set(stored.items()))
    for key in _index_keys(client, keys) | set(indexes):
        members = {member.decode() for member, _ in client.zscan_iter(key, count=_PAGE)}
        yield from _differences(key, indexes.get(key, set()), members)
    yield from _vector_problems(client, keys, labels)
    yield from _history_problems(client, keys)


def _index_keys(client: Any, keys: Keys) -> set[str]:
    """Sorted sets that are there, wanted or not."""
    found = set()
    for key in client.scan_iter(match=keys.pattern, count=_PAGE):
        parsed = parse_key(key)
        if parsed is not None and parsed.kind in ("category", "children"):
            found.add(key.decode())
    return found


def _vector_problems(client: Any, keys: Keys, labels: dict[str, Label]) -> Iterator[str]:
    """A label may lack a vector (of an encoder that has not met it); a vector may not lack its label."""
    for fingerprint, dim in client.hgetall(keys.generations).items():
        for label_id, raw in client.hscan_iter(keys.vectors(fingerprint.decode()), count=_PAGE):
            if label_id.decode() not in labels:
                yield f"encoder {fingerprint.decode()} has a vector of {label_id.decode()}, which is not there"
            try:
                decode_vector(raw, int(dim))
            except VectorCorrupt as error:
                yield f"the vector of {label_id.decode()}: {error}"


def _history_problems(client: Any, keys: Keys) -> Iterator[str]:
    revisions = [parse_change_entry_id(entry_id) for entry_id, _ in client.xrange(keys.changes)]
    if revisions and revisions != list(range(revisions[0], revisions[0] + len(revisions))):
        yield "the change stream has holes"


def _differences(key: str, wanted: set[Any], found: set[Any]) -> Iterator[str]:
    yield from (f"{key} lacks {item!r}" for item in sorted(wanted - found))
    yield from (f"{key} holds {item!r} without reason" for item in sorted(found - wanted))
