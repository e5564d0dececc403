"""Labels as answers show them, and the headers of conditional requests (RFC 9110, section 13)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from vidlex.service.errors import InvalidRequest
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.records import Label, etag_of
from vidlex.service.schemas.labels import LabelView, ParentView

_TAG = r'(W/)?"([\x21\x23-\x7e]*)"'
_TAGS = re.compile(rf"\s*{_TAG}\s*(,\s*{_TAG}\s*)*")


def views(labels: Sequence[Label], store: LabelReader) -> list[LabelView]:
    """With the names of all parents, read at once."""
    parents = [parent for label in labels for parent in label.parents]
    names = store.names_of(parents) if parents else {}
    return [_view(label, names) for label in labels]


def view(label: Label, store: LabelReader) -> LabelView:
    (found,) = views([label], store)
    return found


def etag_header(label: LabelView) -> dict[str, str]:
    return {"ETag": f'"{label.etag}"'}


def if_match_of(header: str | None) -> tuple[str, ...] | None:
    """If-Match as the store wants it: the part of each strong tag that is of the label itself.

    Raises InvalidRequest for what is no list of tags.
    """
    if header is None or header.strip() == "*":
        return None
    return tuple(tag.partition(".")[0] for weak, tag in _tags(header) if not weak)


def is_known(label: LabelView, if_none_match: str | None) -> bool:
    """True when the client has this very state already. Raises InvalidRequest."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or label.etag in (tag for _, tag in _tags(if_none_match))


def _tags(header: str) -> list[tuple[str, str]]:
    if not _TAGS.fullmatch(header):
        raise InvalidRequest("An entity tag is written in double quotes")
    return re.findall(_TAG, header)


def _view(label: Label, names: dict[str, str]) -> LabelView:
    parents = [ParentView(id=i, name=names[i]) for i in label.parents if i in names]
    # The names of the parents are shown too, and change without the label.
    suffix = f".{zlib.crc32(repr(parents).encode()):x}" if parents else ""
    return LabelView(
        id=label.id,
        name=label.name,
        aliases=list(label.aliases),
        categories=list(label.categories),
        parents=parents,
        threshold=label.threshold,
        metadata=label.metadata,
        created_at_ms=label.created_at_ms,
        updated_at_ms=label.updated_at_ms,
        revision=label.revision,
        etag=etag_of(label) + suffix,
    )
