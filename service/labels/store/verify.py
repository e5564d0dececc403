"""Consistency check and repair of a namespace, for operators and tests: it holds the whole namespace in memory.

Every problem is found together with the writes that solve it, so that what a repair does is what a check reports. The
records are the truth; everything else is derived from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.calibrations import CalibrationCorrupt, calibration_from_json
from vidlex.service.labels.store.changes import Change, ChangeCorrupt, change_fields, parse_change
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.corrupt_records import restored_record
from vidlex.service.labels.store.label_size import label_bytes
from vidlex.service.labels.store.records import (
    Label,
    RecordCorrupt,
    label_from_json,
    label_to_json,
    normalized_names,
    without_parents,
)
from vidlex.service.labels.store.redis_keys import (
    Keys,
    change_entry_id,
    is_fingerprint,
    is_label_id,
    parse_change_entry_id,
    parse_key,
    random_token,
    text_entry,
)
from vidlex.service.labels.store.redis_types import RedisWrites, typed_client
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, decode_vector

_SCAN_COUNT = 1000
_MAX_ATTEMPTS = 5

Fix = Callable[[RedisWrites], object]


@dataclass(frozen=True)
class Problem:
    text: str
    fix: Fix | None  # None: only a person can decide what is right
    remedy: str = ""  # what the repair does


def verify_namespace(client: redis.Redis, namespace: str = "default") -> list[str]:
    """One line per problem; empty if the namespace is consistent. Raises StoreUnavailable.

    The check is repeated if the namespace changes in the meantime; constant changes are reported as a problem.
    """
    keys, commands = Keys(namespace), typed_client(client)
    for _ in range(_MAX_ATTEMPTS):
        with store_errors():
            before = read_head(commands, keys)
            problems = [problem.text for problem in _problems(client, keys)]
            if read_head(commands, keys) == before:
                return problems
    return ["the namespace changed during every attempt; no result"]


def repair_namespace(client: redis.Redis, namespace: str = "default") -> list[str]:
    """Solve every problem that can be solved, in one transaction; one line per problem and what was done about it.

    The change of a repair follows no other, so that all replicas load the namespace again. Raises StoreUnavailable, for
    a namespace that changes all the time too.
    """
    keys = Keys(namespace)
    for _ in range(_MAX_ATTEMPTS):
        with store_errors(), typed_client(client).pipeline(transaction=True) as pipe:
            pipe.watch(keys.changes)
            problems = list(_problems(client, keys))
            fixes = [problem.fix for problem in problems if problem.fix is not None]
            if not fixes:
                return [f"{problem.text}: not repaired" for problem in problems]
            newest = max([read_head(pipe, keys).revision, *_record_revisions(client, keys)])
            pipe.multi()
            for fix in fixes:
                fix(pipe)
            change = Change(newest + 2, "put", (), None, random_token(), random_token())
            pipe.xadd(
                keys.changes, change_fields(change), id=change_entry_id(change.revision), maxlen=1, approximate=False
            )
            try:
                pipe.execute()
            except redis.WatchError:
                continue
            return [f"{p.text}: {p.remedy if p.fix is not None else 'not repaired'}" for p in problems]
    raise StoreUnavailable("The namespace changed during every attempt to repair it; stop what writes to it")


def _record_revisions(client: redis.Redis, keys: Keys) -> Iterator[int]:
    for label_id, raw in typed_client(client).hscan_iter(keys.records, count=_SCAN_COUNT):
        try:
            yield label_from_json(_text(label_id), raw).revision
        except RecordCorrupt:
            continue


def _problems(client: redis.Redis, keys: Keys) -> Iterator[Problem]:
    commands = typed_client(client)
    revision = read_head(commands, keys).revision
    owners = dict(commands.hscan_iter(keys.names, count=_SCAN_COUNT))
    labels: dict[str, Label] = {}
    for raw_id, raw in commands.hscan_iter(keys.records, count=_SCAN_COUNT):
        label_id = _text(raw_id)
        if not is_label_id(label_id):
            yield Problem(f"{label_id!r} is not a label id", _set_aside(keys, raw_id, raw), "set aside")
            continue
        try:
            labels[label_id] = label_from_json(label_id, raw)
        except RecordCorrupt as error:
            names = sorted(_text(name) for name, owner in owners.items() if owner == raw_id)
            damage = f"is damaged: {error}"
            restored = restored_record(label_id, raw, names)
            if restored is None:
                text = f"the record of {label_id} ({', '.join(names) or 'no name is known'}) {damage}"
                yield Problem(text, _set_aside(keys, raw_id, raw), "set aside; register the label again")
            else:
                labels[label_id] = label_from_json(label_id, restored)
                text = f"the record of {label_id} ({labels[label_id].name}) {damage}"
                yield Problem(text, _hset(keys.records, label_id, restored), "restored; one byte was wrong")
    for label in labels.values():
        if label.revision > revision:
            text = f"{label.id} has revision {label.revision}, newer than the namespace's {revision}"
            yield Problem(text, _nothing, "the namespace continues after it")
    yield from _parent_problems(keys, labels)
    yield from _name_problems(keys, labels, owners)
    yield from _index_problems(client, keys, labels, owners)
    yield from _vector_problems(client, keys, labels)
    yield from _calibration_problems(client, keys)
    yield from _size_problems(client, keys, labels)
    yield from _history_problems(client, keys)


def _parent_problems(keys: Keys, labels: dict[str, Label]) -> Iterator[Problem]:
    for label in list(labels.values()):
        unknown = [parent for parent in label.parents if parent not in labels]
        if unknown:
            fixed = labels[label.id] = without_parents(label, unknown)
            fix = _hset(keys.records, label.id, label_to_json(fixed))
            for parent in unknown:
                yield Problem(f"{label.id} has the unknown parent {parent}", fix, "removed from its parents")


def _name_problems(keys: Keys, labels: dict[str, Label], owners: dict[bytes, bytes]) -> Iterator[Problem]:
    expected, shared = _owners(labels, owners)
    for text, first, second in shared:
        yield Problem(f"{text!r} belongs to {first} and to {second}; rename one of them", None)
    wanted = {name.encode(): label_id.encode() for name, label_id in expected.items()}
    for name, owner in sorted(wanted.items() - owners.items()):
        shown = (_text(name), _text(owner))
        yield Problem(f"{keys.names} is missing {shown!r}", _hset(keys.names, name, owner), "added")
    for name, owner in sorted(owners.items() - wanted.items()):
        shown = (_text(name), _text(owner))
        fix = _nothing if name in wanted else _hdel(keys.names, name)  # else it has just got its owner
        yield Problem(f"{keys.names} has the unexpected entry {shown!r}", fix, "removed")


def _owners(labels: dict[str, Label], stored: dict[bytes, bytes]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The owner of each normalised name, and names with two: (name, label id, label id)."""
    found: dict[str, str] = {}
    shared = []
    for label in labels.values():
        for name in normalized_names(label):
            other = found.get(name)
            if other is not None:
                shared.append((name, other, label.id))
            if other is None or stored.get(name.encode()) == label.id.encode():
                found[name] = label.id
    return found, shared


def _index_problems(
    client: redis.Redis, keys: Keys, labels: dict[str, Label], owners: dict[bytes, bytes]
) -> Iterator[Problem]:
    indexes: dict[str, set[str]] = defaultdict(set)
    for label in labels.values():
        for category in label.categories:
            indexes[keys.category(category)].add(label.id)
        for parent in label.parents:
            indexes[keys.children(parent)].add(label.id)
    indexes[keys.order] = set(labels)
    indexes[keys.texts] = {text_entry(text, label_id) for text, label_id in _owners(labels, owners)[0].items()}
    for key in _index_keys(client, keys) | set(indexes):
        expected = {member.encode() for member in indexes.get(key, set())}
        found = {member for member, _ in typed_client(client).zscan_iter(key, count=_SCAN_COUNT)}
        for member in sorted(expected - found):
            yield Problem(f"{key} is missing {_text(member)!r}", _zadd(key, member), "added")
        for member in sorted(found - expected):
            yield Problem(f"{key} has the unexpected entry {_text(member)!r}", _zrem(key, member), "removed")


def _index_keys(client: redis.Redis, keys: Keys) -> set[str]:
    found = set()
    for key in typed_client(client).scan_iter(match=keys.pattern, count=_SCAN_COUNT):
        parsed = parse_key(key)
        if parsed is not None and parsed.kind in ("category", "children"):
            found.add(key.decode())
    return found


def _vector_problems(client: redis.Redis, keys: Keys, labels: dict[str, Label]) -> Iterator[Problem]:
    # A label without a vector is valid: it is yet to be encoded.
    commands = typed_client(client)
    for raw_name, raw_dim in commands.hgetall(keys.generations).items():
        name = _text(raw_name)
        if not is_fingerprint(raw_name) or not raw_dim.isdigit():
            text = f"the dimension of encoder {name!r} is damaged: {raw_dim!r}"
            yield Problem(text, _hdel(keys.generations, raw_name), "removed")
            continue
        key = keys.vectors(name)
        for raw_id, raw in commands.hscan_iter(key, count=_SCAN_COUNT):
            label_id = _text(raw_id)
            if label_id not in labels:
                text = f"encoder {name} has a vector of the unknown label {label_id}"
                yield Problem(text, _hdel(key, raw_id), "removed")
            try:
                decode_vector(raw, int(raw_dim))
            except VectorCorrupt as error:
                text = f"the vector of {label_id}: {error}"
                yield Problem(text, _hdel(key, raw_id), "removed; it is encoded again")


def _calibration_problems(client: redis.Redis, keys: Keys) -> Iterator[Problem]:
    for fingerprint, raw in typed_client(client).hgetall(keys.calibrations).items():
        try:
            calibration_from_json(raw)
        except CalibrationCorrupt as error:
            text = f"the calibration of encoder {_text(fingerprint)}: {error}"
            yield Problem(text, _hdel(keys.calibrations, fingerprint), "removed; calibrate again")


def _size_problems(client: redis.Redis, keys: Keys, labels: dict[str, Label]) -> Iterator[Problem]:
    expected = sum(map(label_bytes, labels.values()))
    stored = typed_client(client).get(keys.num_bytes) or b"0"
    if stored != str(expected).encode():
        text = f"{keys.num_bytes} is {_text(stored)} in place of {expected}"
        yield Problem(text, lambda pipe: pipe.set(keys.num_bytes, expected), "counted again")


def _history_problems(client: redis.Redis, keys: Keys) -> Iterator[Problem]:
    # The repair's own change replaces the stream.
    entries = typed_client(client).xrange(keys.changes)
    revisions = [parse_change_entry_id(entry_id) for entry_id, _ in entries]
    if revisions and revisions != list(range(revisions[0], revisions[0] + len(revisions))):
        yield Problem("the change stream has gaps", _nothing, "started again")
    for entry in entries:
        try:
            parse_change(*entry)
        except ChangeCorrupt as error:
            yield Problem(str(error), _nothing, "started again")


# Fields and members may be damaged, so that they are no text.


def _nothing(_: RedisWrites) -> None: ...


def _set_aside(keys: Keys, label_id: Any, raw: bytes) -> Fix:
    def fix(pipe: RedisWrites) -> None:
        pipe.hset(keys.quarantine, mapping={label_id: raw})
        pipe.hdel(keys.records, label_id)

    return fix


def _hset(key: str, field: Any, value: str | bytes) -> Fix:
    return lambda pipe: pipe.hset(key, mapping={field: value})


def _hdel(key: str, field: Any) -> Fix:
    return lambda pipe: pipe.hdel(key, field)


def _zadd(key: str, member: Any) -> Fix:
    return lambda pipe: pipe.zadd(key, {member: 0})


def _zrem(key: str, member: Any) -> Fix:
    return lambda pipe: pipe.zrem(key, member)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
