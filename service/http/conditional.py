"""Conditional requests (RFC 9110, section 13)."""

from __future__ import annotations

import re

from vidlex.service.errors import InvalidRequest

_TAG = r'(W/)?"([\x21\x23-\x7e]*)"'
_TAGS = re.compile(rf"\s*{_TAG}\s*(,\s*{_TAG}\s*)*")


def parse_if_match(header: str | None) -> tuple[str, ...] | None:
    """The strong tags of If-Match; None: no condition. Raises InvalidRequest."""
    if header is None or header.strip() == "*":
        return None
    # Without the suffix for the names of parents, which are not part of the stored label.
    return tuple(tag.partition(".")[0] for weak, tag in _parse_tags(header) if not weak)


def is_not_modified(etag: str, if_none_match: str | None) -> bool:
    """Raises InvalidRequest."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in (tag for _, tag in _parse_tags(if_none_match))


def _parse_tags(header: str) -> list[tuple[str, str]]:
    if not _TAGS.fullmatch(header):
        raise InvalidRequest("An entity tag must be in double quotes")
    return re.findall(_TAG, header)
