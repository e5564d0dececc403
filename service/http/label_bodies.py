from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vidlex.service.errors import VidlexError
from vidlex.service.labels.store.records import UNSET, LabelChanges, NewLabel
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.cards import PreviewBatchBody
from vidlex.service.schemas.labels import LabelBatchBody, LabelChangesBody, NewLabelBody

OutcomeT = TypeVar("OutcomeT")

_MAX_ITEM_PROBLEMS = 10  # of each item of a batch


def parse_new_label(body: object) -> NewLabel:
    """Raises InvalidParameter."""
    return _new_label(validate(NewLabelBody, body))


def _new_label(label: NewLabelBody) -> NewLabel:
    return NewLabel(
        label.name,
        tuple(label.aliases),
        tuple(label.categories),
        tuple(label.parents),
        label.threshold,
        label.metadata,
    )


def parse_label_changes(body: object) -> LabelChanges:
    """Raises InvalidParameter."""
    changes = validate(LabelChangesBody, body)
    return LabelChanges(
        name=changes.name if changes.name is not None else UNSET,
        aliases=tuple(changes.aliases) if changes.aliases is not None else UNSET,
        categories=tuple(changes.categories) if changes.categories is not None else UNSET,
        parents=tuple(changes.parents) if changes.parents is not None else UNSET,
        threshold=changes.threshold if "threshold" in changes.model_fields_set else UNSET,
        metadata=changes.metadata if changes.metadata is not None else UNSET,
    )


@dataclass(frozen=True)
class SentLabels:
    """The body of a request for one label or a batch. An error of a single label is raised instead."""

    body: object
    is_batch: bool
    items: list[NewLabel | VidlexError]


def parse_labels(body: object, batch: type[LabelBatchBody | PreviewBatchBody]) -> SentLabels:
    """Raises InvalidParameter."""
    if isinstance(body, dict) and "labels" in body:
        return SentLabels(body, True, _parse_batch(validate(batch, body).labels))
    return SentLabels(body, False, [parse_new_label(body)])


def _parse_batch(items: Sequence[object]) -> list[NewLabel | VidlexError]:
    parsed: list[NewLabel | VidlexError] = []
    for item in items:
        try:
            parsed.append(_new_label(validate(NewLabelBody, item, max_problems=_MAX_ITEM_PROBLEMS)))
        except VidlexError as error:
            parsed.append(error)
    return parsed


def for_valid_labels(
    parsed: Sequence[NewLabel | VidlexError], work: Callable[[list[NewLabel]], Sequence[OutcomeT]]
) -> list[OutcomeT | VidlexError]:
    """Outcomes in the order of ``parsed``; its errors are passed through."""
    outcomes = iter(work([item for item in parsed if isinstance(item, NewLabel)]))
    return [next(outcomes) if isinstance(item, NewLabel) else item for item in parsed]
