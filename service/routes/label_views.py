from __future__ import annotations

import zlib
from collections.abc import Sequence

from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.records import Label, etag_of
from vidlex.service.schemas.labels import LabelView, ParentView


def label_views(labels: Sequence[Label], store: LabelReader) -> list[LabelView]:
    # Reads the names of all parents in one command.
    parents = [parent for label in labels for parent in label.parents]
    names = store.names_of(parents) if parents else {}
    return [_view(label, names) for label in labels]


def label_view(label: Label, store: LabelReader) -> LabelView:
    (view,) = label_views([label], store)
    return view


def etag_header(label: LabelView) -> dict[str, str]:
    return {"ETag": f'"{label.etag}"'}


def _view(label: Label, names: dict[str, str]) -> LabelView:
    parents = [ParentView(id=i, name=names[i]) for i in label.parents if i in names]
    # The view contains the parents' names, which change without the label.
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
