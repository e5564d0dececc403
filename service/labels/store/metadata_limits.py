"""Bounds of a label's metadata, checked before every write, so that every stored label can be sent."""

from __future__ import annotations

import json
from typing import Any

from vidlex.service.bounds import MAX_METADATA_BYTES, MAX_METADATA_KEYS, MAX_METADATA_LEVELS
from vidlex.service.errors import InvalidParameter

_MAX_SENT_LEVELS = 200  # pydantic writes at most 255, and a page of labels adds a few


def clean_metadata(metadata: object) -> dict[str, Any]:
    """A copy that equals what is read back from the store. Raises InvalidParameter."""
    if not isinstance(metadata, dict):
        raise InvalidParameter("metadata is a JSON object")
    # Before the metadata is written as JSON, which recurses.
    num_levels, num_keys = _measure(metadata, MAX_METADATA_LEVELS)
    if num_levels > MAX_METADATA_LEVELS:
        raise InvalidParameter(f"metadata is at most {MAX_METADATA_LEVELS} levels of objects and lists")
    if num_keys > MAX_METADATA_KEYS:
        raise InvalidParameter(f"metadata has at most {MAX_METADATA_KEYS} keys")
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if len(encoded) > MAX_METADATA_BYTES:
            raise InvalidParameter(f"metadata is at most {MAX_METADATA_BYTES} bytes of JSON")
        copy: dict[str, Any] = json.loads(encoded)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter("metadata is not valid JSON", internal=repr(error)[:200]) from error
    return copy


def can_be_sent(metadata: dict[str, Any]) -> bool:
    """False for metadata that an earlier version stored without bounds, or that was written into the store itself."""
    num_levels, _ = _measure(metadata, _MAX_SENT_LEVELS)
    return num_levels <= _MAX_SENT_LEVELS


def sent_bytes(*fields: object) -> int:
    """About the size of a label's fields in a response."""
    try:
        return sum(len(json.dumps(field)) for field in fields if field)
    except RecursionError:  # see can_be_sent
        return MAX_METADATA_BYTES


def _measure(value: dict[str, Any], max_levels: int) -> tuple[int, int]:
    """Levels of objects and lists, and keys of all objects. Stops after ``max_levels``."""
    level: list[Any] = [value]
    num_levels = num_keys = 0
    while level and num_levels <= max_levels:
        num_levels += 1
        num_keys += sum(len(node) for node in level if isinstance(node, dict))
        members = (member for node in level for member in (node.values() if isinstance(node, dict) else node))
        level = [member for member in members if isinstance(member, (dict, list, tuple))]
    return num_levels, num_keys
