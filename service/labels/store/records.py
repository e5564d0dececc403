"""Labels, their validation, and their JSON form in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from vidlex.service.bounds import MAX_ALIASES, MAX_CATEGORIES, MAX_METADATA_BYTES, MAX_METADATA_LEVELS, MAX_PARENTS
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.names import display_name, fold, normalize_name
from vidlex.service.labels.store.redis_keys import is_label_id


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
        name, tuple(aliases), categories, parents, _clean_threshold(new.threshold), _clean_metadata(new.metadata)
    )


def normalized_names(label: NewLabel | Label) -> list[str]:
    return list(dict.fromkeys(fold(text) for text in (label.name, *label.aliases)))


def apply_changes(label: Label, changes: LabelChanges) -> NewLabel:
    return clean(
        NewLabel(
            name=label.name if isinstance(changes.name, Unset) else changes.name,
            aliases=label.aliases if isinstance(changes.aliases, Unset) else changes.aliases,
            categories=label.categories if isinstance(changes.categories, Unset) else changes.categories,
            parents=label.parents if isinstance(changes.parents, Unset) else changes.parents,
            threshold=label.threshold if isinstance(changes.threshold, Unset) else changes.threshold,
            metadata=label.metadata if isinstance(changes.metadata, Unset) else changes.metadata,
        )
    )


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
    return json.dumps(
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


def label_from_json(label_id: str, text: str | bytes) -> Label:
    data = json.loads(text)
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


def _clean_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(metadata, dict):
        raise InvalidParameter("metadata is a JSON object")
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if len(encoded) > MAX_METADATA_BYTES:
            raise InvalidParameter(f"metadata is at most {MAX_METADATA_BYTES} bytes of JSON")
        if _num_levels(metadata) > MAX_METADATA_LEVELS:
            raise InvalidParameter(f"metadata is at most {MAX_METADATA_LEVELS} levels of objects and lists")
        copy: dict[str, Any] = json.loads(encoded)  # a new label must equal the label that is read back
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter("metadata is not valid JSON", internal=repr(error)) from error
    return copy


def _num_levels(value: dict[str, Any]) -> int:
    level: list[Any] = [value]
    num_levels = 0
    while level:
        num_levels += 1
        members = [member for node in level for member in (node.values() if isinstance(node, dict) else node)]
        level = [member for member in members if isinstance(member, (dict, list, tuple))]
    return num_levels
