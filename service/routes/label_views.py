from __future__ import annotations

import zlib
from collections.abc import Sequence

from vidlex.service.labels.store.records import Label, etag_of
from vidlex.service.models.calibration import hub_warnings
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.base import WarningView
from vidlex.service.schemas.labels import LabelView, ParentView


def label_views(labels: Sequence[Label], vocabulary: Vocabulary) -> list[LabelView]:
    # Reads the names of all parents in one command.
    parents = [parent for label in labels for parent in label.parents]
    names = vocabulary.store.names_of(parents) if parents else {}
    vectors = {label.id: vocabulary.index.vector(label.id) for label in labels}
    known = {label_id: vector for label_id, vector in vectors.items() if vector is not None}
    warnings = dict(zip(known, hub_warnings(vocabulary, list(known.values())), strict=True))
    return [_view(label, names, warnings.get(label.id)) for label in labels]


def label_view(label: Label, vocabulary: Vocabulary) -> LabelView:
    (view,) = label_views([label], vocabulary)
    return view


def etag_header(label: LabelView) -> dict[str, str]:
    return {"ETag": f'"{label.etag}"'}


def _view(label: Label, names: dict[str, str], warning: tuple[str, str] | None) -> LabelView:
    parents = [ParentView(id=i, name=names[i]) for i in label.parents if i in names]
    # The view contains the parents' names and the warning, which change without the label.
    derived = [*parents, *([] if warning is None else [warning])]
    suffix = f".{zlib.crc32(repr(derived).encode()):x}" if derived else ""
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
        warnings=[] if warning is None else [WarningView(code=warning[0], detail=warning[1])],
        etag=etag_of(label) + suffix,
    )
