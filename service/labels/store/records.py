"""Labels, their validation, and their JSON form in the store.

A record ends with the member ``crc32``: the CRC-32 of the label's id and of the record without that member. Services of
schema 2 ignore it. Records that they wrote have none, until the migration adds it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from vidlex.service.bounds import MAX_ALIASES, MAX_CATEGORIES, MAX_PARENTS
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.metadata_limits import clean_metadata
from vidlex.service.labels.store.names import display_name, fold, normalize_name
from vidlex.service.labels.store.redis_keys import is_label_id

_CHECKSUM_BYTES = len(',"crc32":"01234567"}')
_TEXT_LISTS = ("aliases", "categories", "parents")
_INTEGERS = ("created_at_ms", "updated_at_ms", "revision")
_MEMBERS = {"name", *_TEXT_LISTS, "threshold", "metadata", *_INTEGERS}


class RecordCorrupt(ValueError):
    """A record cannot be read, or its checksum does not match. The label is quarantined until it is repaired."""


class Unset(Enum):
    """The type of UNSET, which leaves a field unchanged; None clears it."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class NewLabel:
    name: str
    aliases: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()  # names, aliases or ids of labels of the same namespace
    threshold: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelChanges:
    name: str | Unset = UNSET
    aliases: tuple[str, ...] | Unset = UNSET
    categories: tuple[str, ...] | Unset = UNSET
    parents: tuple[str, ...] | Unset = UNSET
    threshold: float | Unset | None = UNSET
    metadata: dict[str, Any] | Unset = UNSET


@dataclass(frozen=True)
class Label:
    """Categories are normalised; parents are ids of existing labels, without cycles; times are Unix time.

    ``revision`` is that of the namespace at the label's last change.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    categories: tuple[str, ...]
    parents: tuple[str, ...]
    threshold: float | None
    metadata: dict[str, Any]
    created_at_ms: int
    updated_at_ms: int
    revision: int


@dataclass(frozen=True)
class Page:
    data: list[Label]
    has_more: bool


def clean(new: NewLabel) -> NewLabel:
    """Normalise and validate. Idempotent. Raises LabelTextInvalid, InvalidParameter."""
    name = display_name(new.name)
    if len(new.aliases) > MAX_ALIASES:
        raise InvalidParameter(f"A label has at most {MAX_ALIASES} aliases")
    if len(new.categories) > MAX_CATEGORIES:
        raise InvalidParameter(f"A label has at most {MAX_CATEGORIES} categories")
    seen = {fold(name)}
    aliases = []
    for alias in map(display_name, new.aliases):
        if fold(alias) not in seen:
            seen.add(fold(alias))
            aliases.append(alias)
    categories = tuple(dict.fromkeys(map(normalize_name, new.categories)))
    if len(new.parents) > MAX_PARENTS:
        raise InvalidParameter(f"A label has at most {MAX_PARENTS} parents")
    parents = tuple(dict.fromkeys(text if is_label_id(text) else display_name(text) for text in new.parents))
    return NewLabel(
        name, tuple(aliases), categories, parents, _clean_threshold(new.threshold), clean_metadata(new.metadata)
    )


def normalized_names(label: NewLabel | Label) -> list[str]:
    return list(dict.fromkeys(fold(text) for text in (label.name, *label.aliases)))


def apply_changes(label: Label, changes: LabelChanges) -> NewLabel:
    cleaned = clean(
        NewLabel(
            name=label.name if isinstance(changes.name, Unset) else changes.name,
            aliases=label.aliases if isinstance(changes.aliases, Unset) else changes.aliases,
            categories=label.categories if isinstance(changes.categories, Unset) else changes.categories,
            parents=label.parents if isinstance(changes.parents, Unset) else changes.parents,
            threshold=label.threshold if isinstance(changes.threshold, Unset) else changes.threshold,
            metadata={} if isinstance(changes.metadata, Unset) else changes.metadata,
        )
    )
    # What is kept may be from a time with other bounds.
    return replace(cleaned, metadata=label.metadata) if isinstance(changes.metadata, Unset) else cleaned


def without_parents(label: Label, unknown: Collection[str]) -> Label:
    return replace(label, parents=tuple(parent for parent in label.parents if parent not in unknown))


def client_fields(label: Label) -> NewLabel:
    return NewLabel(label.name, label.aliases, label.categories, label.parents, label.threshold, label.metadata)


def etag_of(label: Label) -> str:
    # With the time, because a store restored from a backup assigns the same revisions again.
    return f"{label.revision:x}-{label.updated_at_ms:x}"


def make_label(label_id: str, cleaned: NewLabel, *, created_at_ms: int, updated_at_ms: int, revision: int) -> Label:
    return Label(
        label_id,
        cleaned.name,
        cleaned.aliases,
        cleaned.categories,
        cleaned.parents,  # must be ids
        cleaned.threshold,
        cleaned.metadata,
        created_at_ms,
        updated_at_ms,
        revision,
    )


def label_to_json(label: Label) -> str:
    text = json.dumps(
        {
            "name": label.name,
            "aliases": label.aliases,
            "categories": label.categories,
            "parents": label.parents,
            "threshold": label.threshold,
            "metadata": label.metadata,
            "created_at_ms": label.created_at_ms,
            "updated_at_ms": label.updated_at_ms,
            "revision": label.revision,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return f'{text[:-1]},"crc32":"{checksum_of(label.id, text.encode()).decode()}"}}'


def checksum_of(label_id: str, record: bytes) -> bytes:
    """Of a record without the member ``crc32``: 8 hexadecimal digits."""
    return b"%08x" % zlib.crc32(record, zlib.crc32(label_id.encode()))


def split_checksum(raw: bytes) -> tuple[bytes, bytes | None]:
    """The record without its checksum, and the digits of the checksum, or None."""
    tail = raw[-_CHECKSUM_BYTES:]
    if tail.startswith(b',"crc32":"') and tail.endswith(b'"}'):
        return raw[:-_CHECKSUM_BYTES] + b"}", tail[10:-2]
    return raw, None


def label_from_json(label_id: str, text: str | bytes) -> Label:
    """Raises RecordCorrupt."""
    record, checksum = split_checksum(text.encode() if isinstance(text, str) else text)
    if checksum is not None and checksum != checksum_of(label_id, record):
        raise RecordCorrupt("the checksum does not match the record")
    try:
        data = json.loads(record)
        if checksum is None:
            _check_members(data)
        return _label_of(label_id, data)
    except RecordCorrupt:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordCorrupt(f"it cannot be read: {error!r}") from error


def _check_members(data: Any) -> None:
    """Of a record without a checksum. Raises RecordCorrupt."""
    if not isinstance(data, dict) or not set(data) <= _MEMBERS:
        raise RecordCorrupt("it has unknown members")
    threshold = data["threshold"]
    if not (
        isinstance(data["name"], str)
        and isinstance(data["metadata"], dict)
        and all(type(data[name]) is int for name in _INTEGERS)
        and all(_is_text_list(data.get(name, [])) for name in _TEXT_LISTS)
        and (threshold is None or (type(threshold) in (int, float) and 0 <= threshold <= 1))
    ):
        raise RecordCorrupt("it has values of a wrong type")


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _label_of(label_id: str, data: dict[str, Any]) -> Label:
    return Label(
        id=label_id,
        name=data["name"],
        aliases=tuple(data["aliases"]),
        categories=tuple(data["categories"]),
        # Missing if a service of schema 1 wrote the label while the store was migrated.
        parents=tuple(data.get("parents", ())),
        threshold=data["threshold"],
        metadata=data["metadata"],
        created_at_ms=data["created_at_ms"],
        updated_at_ms=data["updated_at_ms"],
        revision=data["revision"],
    )


def matches_text(label: Label, folded: str) -> bool:
    texts: Sequence[str] = normalized_names(label)
    return any(folded in text for text in texts)


def _clean_threshold(threshold: float | None) -> float | None:
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise InvalidParameter("A threshold is a number from 0 to 1")
    return float(threshold)
