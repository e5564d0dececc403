"""The entries of a backup, and their checks: a file may come from anyone.

    (header)       when it was written, and ids of the store: its own, and those that it has replaced
    access         revision of the API keys; then one ``key`` each: its record (a digest, no secret) and last use
    model          the model pointer
    namespace      begins a namespace; then, until ``namespace_end``:
      request      a request with an Idempotency-Key, until it expires
      label        a label and its vectors; a later entry of the same id replaces an earlier one
      removed      ids of labels that were removed while the backup was written
      again        what came before, of this namespace, does not count
    namespace_end  revision, number of labels, generations, number of vectors of each, calibrations

Entries are written while others write to the store. Only at its ``namespace_end`` a namespace is as it was at one
revision.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, BinaryIO

from vidlex.service.access.api_keys import KeyRecord, record_from_json
from vidlex.service.backup.lines import BackupError, Line, read_lines
from vidlex.service.bounds import MAX_ALIASES, MAX_CATEGORIES, MAX_PARENTS
from vidlex.service.labels.store.calibrations import Calibration, calibration_from_json
from vidlex.service.labels.store.model_pointer import ModelName, ModelPointer
from vidlex.service.labels.store.records import Label
from vidlex.service.labels.store.redis_keys import check_fingerprint, is_label_id, is_namespace
from vidlex.service.labels.store.vectors import VectorCorrupt, check_vector, decode_vector

# Far above what the service stores, and far below what hurts.
_MAX_TEXT_CHARS = 2048
_MAX_METADATA_BYTES = 2**18
_MAX_GENERATIONS = 1000
_MAX_DIM = 2**16
_MAX_NUMBER = 2**53
_MAX_REVISION = 32**8 - 1  # of a label id
_MAX_REQUEST_FIELDS = 4096
_REQUEST_FIELD = re.compile(r"body|answer|item:[0-9]{1,6}")
_MAX_NAMESPACES = 1_000_000
_MAX_STORE_IDS = 10_000


@dataclass(frozen=True)
class HeaderEntry:
    created_at_ms: int
    store_ids: tuple[str, ...]


@dataclass(frozen=True)
class AccessEntry:
    revision: int


@dataclass(frozen=True)
class KeyEntry:
    record: KeyRecord
    used_at_ms: int | None


@dataclass(frozen=True)
class ModelEntry:
    pointer: ModelPointer


@dataclass(frozen=True)
class NamespaceEntry:
    name: str


@dataclass(frozen=True)
class RequestEntry:
    digest: str
    fields: Mapping[str, bytes]
    expires_at_ms: int


@dataclass(frozen=True)
class LabelEntry:
    label: Label
    vectors: Mapping[str, bytes]  # by fingerprint, as stored


@dataclass(frozen=True)
class RemovedEntry:
    ids: tuple[str, ...]


@dataclass(frozen=True)
class AgainEntry: ...


@dataclass(frozen=True)
class NamespaceEnd:
    revision: int
    num_labels: int
    generations: Mapping[str, int]  # fingerprint to D
    num_vectors: Mapping[str, int]
    calibrations: Mapping[str, Calibration]


Entry = (
    HeaderEntry
    | AccessEntry
    | KeyEntry
    | ModelEntry
    | NamespaceEntry
    | RequestEntry
    | LabelEntry
    | RemovedEntry
    | AgainEntry
    | NamespaceEnd
)


def label_fields(label: Label, vectors: Mapping[str, bytes]) -> dict[str, Any]:
    return {"label": asdict(label), "vectors": {f: base64.b64encode(raw).decode() for f, raw in vectors.items()}}


def request_fields(entry: RequestEntry) -> dict[str, Any]:
    values = {name: base64.b64encode(raw).decode() for name, raw in entry.fields.items()}
    return {"digest": entry.digest, "fields": values, "expires_at_ms": entry.expires_at_ms}


def end_fields(end: NamespaceEnd) -> dict[str, Any]:
    return asdict(end)


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """Every entry in order, each checked on its own and for its place. Raises BackupError."""
    namespace: str | None = None
    seen: set[str] = set()
    num_access = num_models = 0
    for number, line in read_lines(file):
        try:
            entry = _header_entry(line) if number == 1 else _parse(line)
            inside = isinstance(entry, RequestEntry | LabelEntry | RemovedEntry | AgainEntry | NamespaceEnd)
            _require(inside == (namespace is not None), "it is not in its place")
            if isinstance(entry, NamespaceEntry):
                _require(entry.name not in seen, "the namespace is there twice")
                _require(len(seen) < _MAX_NAMESPACES, "there are too many namespaces")
                namespace = entry.name
                seen.add(namespace)
            elif isinstance(entry, NamespaceEnd):
                namespace = None
            num_access += isinstance(entry, AccessEntry)
            num_models += isinstance(entry, ModelEntry)
            _require(num_access <= 1 and num_models <= 1, "it is there twice")
            _require(num_access == 1 or not isinstance(entry, KeyEntry), "it is not in its place")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            reason = str(error) if isinstance(error, _Invalid) else "a member is missing or has another type"
            raise BackupError(f"line {number} of the backup is not valid: {reason}") from None
        yield entry
    if namespace is not None:
        raise BackupError(f"the namespace {namespace} has no end")


class _Invalid(ValueError): ...


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise _Invalid(reason)


def _header_entry(line: Line) -> HeaderEntry:
    ids = tuple(line["store_ids"])
    _require(len(ids) <= _MAX_STORE_IDS and all(map(_is_text, ids)), "the ids of the store are not valid")
    return HeaderEntry(_number(line["created_at_ms"]), ids)


def _parse(line: Line) -> Entry:
    parser = _PARSERS.get(line["kind"])
    _require(parser is not None, "its kind is unknown")
    assert parser is not None
    return parser(line)


def _namespace_entry(line: Line) -> NamespaceEntry:
    _require(is_namespace(line["name"]), "the namespace's name is not valid")
    return NamespaceEntry(line["name"])


def _removed_entry(line: Line) -> RemovedEntry:
    ids = tuple(line["ids"])
    _require(all(isinstance(i, str) and is_label_id(i) for i in ids), "an id is not a label's")
    return RemovedEntry(ids)


def _key_entry(line: Line) -> KeyEntry:
    record = record_from_json(json.dumps(line["record"]))
    _require(_is_text(record.name, 0) and _is_text(record.digest), "the key has no valid texts")
    _require(record.namespace is None or is_namespace(record.namespace), "the key's namespace is not valid")
    numbers = (record.created_at_ms, record.expires_at_ms, record.burst, record.max_labels)
    for number in (*numbers, used := line["used_at_ms"]):
        _require(number is None or _number(number) >= 0, "a number is out of range")
    rate = record.requests_per_second
    _require(rate is None or (isinstance(rate, int | float) and 0 <= rate <= _MAX_NUMBER), "its rate is not valid")
    return KeyEntry(record, used)


def _label_entry(line: Line) -> LabelEntry:
    data = line["label"]
    threshold = data["threshold"]
    if threshold is not None:
        _require(isinstance(threshold, int | float) and 0 <= threshold <= 1, "the threshold is not 0 to 1")
    _require(is_label_id(data["id"]), "the id is not a label's")
    _require(_is_text(data["name"]), "the name is not valid")
    for name, most in (("aliases", MAX_ALIASES), ("categories", MAX_CATEGORIES), ("parents", MAX_PARENTS)):
        values = data[name]
        _require(isinstance(values, list) and len(values) <= most, f"{name} are not valid")
        _require(all(map(_is_text, values)), f"{name} are not valid")
    _require(all(map(is_label_id, data["parents"])), "a parent is not an id")
    metadata = data["metadata"]
    _require(isinstance(metadata, dict), "metadata is no object")
    _require(
        len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()) <= _MAX_METADATA_BYTES,
        "metadata is too long",
    )
    label = Label(
        data["id"],
        data["name"],
        tuple(data["aliases"]),
        tuple(data["categories"]),
        tuple(data["parents"]),
        None if threshold is None else float(threshold),
        metadata,
        _number(data["created_at_ms"]),
        _number(data["updated_at_ms"]),
        _number(data["revision"], _MAX_REVISION),
    )
    return LabelEntry(label, {_fingerprint(f): _vector(text) for f, text in _mapping(line["vectors"]).items()})


def _vector(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
        _require(4 < len(raw) <= 4 * (_MAX_DIM + 1), "a vector is damaged")
        check_vector(decode_vector(raw, len(raw) // 4 - 1))
    except (binascii.Error, VectorCorrupt, ValueError) as error:
        raise _Invalid("a vector is damaged") from error
    return raw


def _namespace_end(line: Line) -> NamespaceEnd:
    calibrations = {
        _fingerprint(f): calibration_from_json(json.dumps(value).encode())
        for f, value in _mapping(line["calibrations"]).items()
    }
    return NamespaceEnd(
        _number(line["revision"], _MAX_REVISION),
        _number(line["num_labels"]),
        {_fingerprint(f): _number(dim, _MAX_DIM) for f, dim in _mapping(line["generations"]).items()},
        {_fingerprint(f): _number(count) for f, count in _mapping(line["num_vectors"]).items()},
        calibrations,
    )


def _request_entry(line: Line) -> RequestEntry:
    digest = line["digest"]
    _require(isinstance(digest, str) and len(digest) == 64 and digest.isalnum() and digest.isascii(), "no digest")
    values = line["fields"]
    _require("body" in values and len(values) <= _MAX_REQUEST_FIELDS, "its fields are not valid")
    _require(all(map(_REQUEST_FIELD.fullmatch, values)), "its fields are not valid")
    try:
        decoded = {name: base64.b64decode(text, validate=True) for name, text in values.items()}
    except binascii.Error as error:
        raise _Invalid("its fields are not base64") from error
    return RequestEntry(digest, decoded, _number(line["expires_at_ms"]))


def _pointer(data: dict[str, Any]) -> ModelPointer:
    def name(role: str) -> ModelName | None:
        given = data[role]
        if given is None:
            return None
        values = {field.name: given[field.name] for field in fields(ModelName)}
        _require(all(map(_is_text, values.values())), "the model's name is not valid")
        return ModelName(**values)

    served = name("served")
    _require(served is not None and _is_text(data["configured"]), "the model pointer is not valid")
    assert served is not None
    return ModelPointer(data["configured"], served, name("previous"), name("prepared"))


def _mapping(value: Any) -> dict[str, Any]:
    _require(isinstance(value, dict) and len(value) <= _MAX_GENERATIONS, "a member is no object, or too large")
    mapping: dict[str, Any] = value
    return mapping


def _fingerprint(text: str) -> str:
    check_fingerprint(text)
    return text


def _number(value: Any, most: int = _MAX_NUMBER) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most, "a number is out of range")
    return int(value)


def _is_text(value: Any, min_chars: int = 1) -> bool:
    if not isinstance(value, str) or not min_chars <= len(value) <= _MAX_TEXT_CHARS or "\0" in value:
        return False
    return not any("\ud800" <= char <= "\udfff" for char in value)  # lone surrogates, which UTF-8 cannot hold


_PARSERS: dict[str, Callable[[Line], Entry]] = {
    "access": lambda line: AccessEntry(_number(line["revision"])),
    "key": _key_entry,
    "model": lambda line: ModelEntry(_pointer(line["pointer"])),
    "namespace": _namespace_entry,
    "request": _request_entry,
    "label": _label_entry,
    "removed": _removed_entry,
    "again": lambda _: AgainEntry(),
    "namespace_end": _namespace_end,
}
