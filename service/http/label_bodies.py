from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vidlex.service.errors import VidlexError
from vidlex.service.labels.store.records import UNSET, LabelChanges, NewLabel
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.labels import LabelChangesBody, NewLabelBody

OutcomeT = TypeVar("OutcomeT")


def parse_new_label(body: object) -> NewLabel:
    """Raises InvalidParameter."""
    label = validate(NewLabelBody, body)
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


def parse_batch(items: Sequence[object]) -> list[NewLabel | VidlexError]:
    parsed: list[NewLabel | VidlexError] = []
    for item in items:
        try:
            parsed.append(parse_new_label(item))
        except VidlexError as error:
            parsed.append(error)
    return parsed


def for_valid_labels(
    parsed: Sequence[NewLabel | VidlexError], work: Callable[[list[NewLabel]], Sequence[OutcomeT]]
) -> list[OutcomeT | VidlexError]:
    """Outcomes in the order of ``parsed``; its errors are passed through."""
    outcomes = iter(work([item for item in parsed if isinstance(item, NewLabel)]))
    return [next(outcomes) if isinstance(item, NewLabel) else item for item in parsed]
