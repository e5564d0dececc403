"""Consistency check of a namespace, for operators and tests: it holds the whole namespace in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import redis

from vidlex.service.labels.store.calibrations import CalibrationCorrupt, calibration_from_json
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.records import Label, label_from_json, normalized_names
from vidlex.service.labels.store.redis_keys import Keys, is_label_id, parse_change_entry_id, parse_key, text_entry
from vidlex.service.labels.store.redis_types import RedisClient, typed_client
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

_SCAN_COUNT = 1000
_MAX_ATTEMPTS = 5


def verify_namespace(client: redis.Redis, namespace: str = "default") -> list[str]:
    """One line per problem; empty if the namespace is consistent. Raises StoreUnavailable.

    The check is repeated if the namespace changes in the meantime; constant changes are reported as a problem.
    """
    keys, commands = Keys(namespace), typed_client(client)
    for _ in range(_MAX_ATTEMPTS):
        with store_errors():
            before = read_head(commands, keys)
            problems = list(_problems(commands, keys))
            if read_head(commands, keys) == before:
                return problems
    return ["the namespace changed during every attempt; no result"]


def _problems(client: RedisClient, keys: Keys) -> Iterator[str]:
    revision = read_head(client, keys).revision
    labels: dict[str, Label] = {}
    for label_id, raw in client.hscan_iter(keys.records, count=_SCAN_COUNT):
        try:
            labels[label_id.decode()] = label_from_json(label_id.decode(), raw)
        except (ValueError, KeyError, TypeError) as error:
            yield f"the record of {label_id!r} cannot be read: {error!r}"
    yield from (f"{label_id!r} is not a label id" for label_id in labels if not is_label_id(label_id))
    yield from (
        f"{x.id} has revision {x.revision}, newer than the namespace's {revision}"
        for x in labels.values()
        if x.revision > revision
    )

    names: dict[str, str] = {}
    indexes: dict[str, set[str]] = defaultdict(set)
    for label in labels.values():
        for text in normalized_names(label):
            if text in names:
                yield f"{text!r} belongs to {names[text]} and to {label.id}"
            names[text] = label.id
        for category in label.categories:
            indexes[keys.category(category)].add(label.id)
        for parent in label.parents:
            indexes[keys.children(parent)].add(label.id)
            if parent not in labels:
                yield f"{label.id} has the unknown parent {parent}"
    indexes[keys.order] = set(labels)
    indexes[keys.texts] = {text_entry(text, label_id) for text, label_id in names.items()}
    stored = {key.decode(): value.decode() for key, value in client.hscan_iter(keys.names, count=_SCAN_COUNT)}
    yield from _differences(keys.names, set(names.items()), set(stored.items()))
    for key in _index_keys(client, keys) | set(indexes):
        members = {member.decode() for member, _ in client.zscan_iter(key, count=_SCAN_COUNT)}
        yield from _differences(key, indexes.get(key, set()), members)
    yield from _vector_problems(client, keys, labels)
    yield from _calibration_problems(client, keys)
    yield from _history_problems(client, keys)


def _index_keys(client: RedisClient, keys: Keys) -> set[str]:
    found = set()
    for key in client.scan_iter(match=keys.pattern, count=_SCAN_COUNT):
        parsed = parse_key(key)
        if parsed is not None and parsed.kind in ("category", "children"):
            found.add(key.decode())
    return found


def _vector_problems(client: RedisClient, keys: Keys, labels: dict[str, Label]) -> Iterator[str]:
    # A label without a vector is valid: it is yet to be encoded.
    for fingerprint, dim in client.hgetall(keys.generations).items():
        for label_id, raw in client.hscan_iter(keys.vectors(fingerprint.decode()), count=_SCAN_COUNT):
            if label_id.decode() not in labels:
                yield f"encoder {fingerprint.decode()} has a vector of the unknown label {label_id.decode()}"
            try:
                decode_vector(raw, int(dim))
            except VectorCorrupt as error:
                yield f"the vector of {label_id.decode()}: {error}"


def _calibration_problems(client: RedisClient, keys: Keys) -> Iterator[str]:
    for fingerprint, raw in client.hgetall(keys.calibrations).items():
        try:
            calibration_from_json(raw)
        except CalibrationCorrupt as error:
            yield f"the calibration of encoder {fingerprint.decode()}: {error}"


def _history_problems(client: RedisClient, keys: Keys) -> Iterator[str]:
    revisions = [parse_change_entry_id(entry_id) for entry_id, _ in client.xrange(keys.changes)]
    if revisions and revisions != list(range(revisions[0], revisions[0] + len(revisions))):
        yield "the change stream has gaps"


def _differences(key: str, expected: set[Any], found: set[Any]) -> Iterator[str]:
    yield from (f"{key} is missing {item!r}" for item in sorted(expected - found))
    yield from (f"{key} has the unexpected entry {item!r}" for item in sorted(found - expected))
