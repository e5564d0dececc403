from __future__ import annotations

import zlib
from collections.abc import Sequence

from vidlex.service.labels.store.metadata_limits import can_be_sent, sent_bytes
from vidlex.service.labels.store.records import Label, etag_of
from vidlex.service.models.calibration import hub_warnings
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.base import WarningView
from vidlex.service.schemas.labels import LabelView, ParentView


def label_views(
    labels: Sequence[Label], vocabulary: Vocabulary, *, max_metadata_bytes: int | None = None
) -> list[LabelView]:
    """The metadata beyond ``max_metadata_bytes`` of all labels is left out, with a warning."""
    # Reads the names of all parents in one command.
    parents = [parent for label in labels for parent in label.parents]
    names = vocabulary.store.names_of(parents) if parents else {}
    vectors = {label.id: vocabulary.index.vector(label.id) for label in labels}
    known = {label_id: vector for label_id, vector in vectors.items() if vector is not None}
    warnings = dict(zip(known, hub_warnings(vocabulary, list(known.values())), strict=True))
    views = [_view(label, names, warnings.get(label.id)) for label in labels]
    if max_metadata_bytes is not None:
        _leave_out_metadata(views, max_metadata_bytes)
    return views


def label_view(label: Label, vocabulary: Vocabulary) -> LabelView:
    (view,) = label_views([label], vocabulary)
    return view


def etag_header(label: LabelView) -> dict[str, str]:
    return {"ETag": f'"{label.etag}"'}


_NOT_SHOWN = "metadata_not_shown"
_HIDDEN_METADATA = (
    _NOT_SHOWN,
    "The stored metadata has too many levels of objects and lists to be sent; PATCH with new metadata replaces it",
)


def _leave_out_metadata(views: Sequence[LabelView], max_bytes: int) -> None:
    num_bytes = 0
    for view in views:
        num_bytes += sent_bytes(view.metadata)
        if num_bytes > max_bytes and view.metadata:
            view.metadata = {}
            detail = "The answer has too much metadata; get the label"
            view.warnings.append(WarningView(code=_NOT_SHOWN, detail=detail))


def _view(label: Label, names: dict[str, str], hub_warning: tuple[str, str] | None) -> LabelView:
    parents = [ParentView(id=i, name=names[i]) for i in label.parents if i in names]
    # The view contains the parents' names and the warning, which change without the label.
    is_whole = can_be_sent(label.metadata)
    warnings = [*([] if hub_warning is None else [hub_warning]), *([] if is_whole else [_HIDDEN_METADATA])]
    derived = [*parents, *warnings]
    suffix = f".{zlib.crc32(repr(derived).encode()):x}" if derived else ""
    return LabelView(
        id=label.id,
        name=label.name,
        aliases=list(label.aliases),
        categories=list(label.categories),
        parents=parents,
        threshold=label.threshold,
        metadata=label.metadata if is_whole else {},
        created_at_ms=label.created_at_ms,
        updated_at_ms=label.updated_at_ms,
        revision=label.revision,
        warnings=[WarningView(code=code, detail=detail) for code, detail in warnings],
        etag=etag_of(label) + suffix,
    )
