"""Label cards: how the model encodes a label, and which labels of the vocabulary it confuses with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import LabelDescription
from vidlex.service.errors import VidlexError
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.records import Label, NewLabel, clean
from vidlex.service.models.calibration import hub_warnings
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.sharing.requester import Requester

MAX_NEIGHBOURS = 10
# Labels closer than this fraction of the vocabulary's mean distance nearly always get the same score.
# A fraction, because mean distances differ between models. Measured with emoji-small on 230 labels: 92 % are this
# close to their own name with other capitals, 61 % to their name with an article, one in 250 to any other of the 230,
# and 0.002 % of unrelated pairs. Plurals (3 %) and synonyms (4 % of 50 pairs) are farther apart.
COLLISION_DISTANCE = 0.1
_MIN_LABELS_FOR_MEAN = 30  # with fewer other labels, their mean cosine is taken as 0


@dataclass(frozen=True)
class Neighbour:
    label: IndexedLabel
    similarity: float  # cosine of the two labels' vectors
    distance: float  # 1 - cosine, divided by its mean over the vocabulary's other labels


@dataclass(frozen=True)
class Card:
    name: str
    label: Label | None  # None for a preview
    description: LabelDescription
    neighbours: tuple[Neighbour, ...]  # nearest first
    warnings: tuple[tuple[str, str], ...]  # (code, detail)
    revision: int


def card_of(vocabulary: Vocabulary, label_id: str, requester: Requester | None = None) -> Card:
    """Raises NotFound, StoreUnavailable, and what ``Engine.describe_labels`` raises."""
    label = vocabulary.store.get(label_id)
    (description,) = vocabulary.engine.describe_labels([label.name], requester=requester)
    if isinstance(description, VidlexError):
        raise description
    vector = vocabulary.index.vector(label_id)
    if vector is None:
        missing = ("label_not_encoded", "This model has not encoded the label (yet): no video is compared with it")
        return Card(label.name, label, description, (), (missing,), vocabulary.index.revision)
    neighbours = nearest(vocabulary, vector, label_id)
    warnings = (*_collisions(neighbours), *_hub(vocabulary, vector))
    return Card(label.name, label, description, neighbours, warnings, vocabulary.index.revision)


def preview(
    vocabulary: Vocabulary, items: Sequence[NewLabel], requester: Requester | None = None
) -> list[Card | VidlexError]:
    """The cards of labels that are not stored, in order; a bad item does not affect the others.

    Raises StoreUnavailable and what ``Engine.encode_labels`` raises.
    """
    cleaned: list[NewLabel | VidlexError] = []
    for item in items:
        try:
            cleaned.append(clean(item))
        except VidlexError as error:
            cleaned.append(error)
    names = [item.name for item in cleaned if isinstance(item, NewLabel)]
    vectors = iter(vocabulary.labeler.encode(names, requester))
    descriptions = iter(vocabulary.engine.describe_labels(names, requester=requester))
    cards: list[Card | VidlexError] = []
    for entry in cleaned:
        if isinstance(entry, VidlexError):
            cards.append(entry)
            continue
        vector, description = next(vectors), next(descriptions)
        if isinstance(vector, VidlexError):
            cards.append(vector)
        elif isinstance(description, VidlexError):
            cards.append(description)
        else:
            cards.append(_preview_card(vocabulary, entry, vector, description))
    return cards


def _preview_card(
    vocabulary: Vocabulary, item: NewLabel, vector: NDArray[np.float32], description: LabelDescription
) -> Card:
    warnings = []
    for text in (item.name, *item.aliases):
        existing = vocabulary.store.find(text)
        if existing is not None:
            warnings.append(("label_exists", f"The label {existing.id} has this name or alias: {text}"))
    neighbours = nearest(vocabulary, vector)
    warnings.extend(_collisions(neighbours))
    warnings.extend(_hub(vocabulary, vector))
    return Card(item.name, None, description, neighbours, tuple(warnings), vocabulary.index.revision)


def nearest(vocabulary: Vocabulary, vector: NDArray[np.float32], own_id: str | None = None) -> tuple[Neighbour, ...]:
    labels, cosines = vocabulary.index.cosines(vector)
    num_others = len(labels) - (own_id is not None)
    if num_others < 1:
        return ()
    count = min(len(labels), MAX_NEIGHBOURS + 1)
    kth = np.partition(cosines, -count)[-count]
    candidates = sorted(np.flatnonzero(cosines >= kth).tolist(), key=lambda i: (-cosines[i], labels[i].name))
    mean = 0.0
    if num_others >= _MIN_LABELS_FOR_MEAN:
        mean = (float(cosines.sum(dtype=np.float64)) - (own_id is not None)) / num_others
    mean_distance = max(1e-6, 1 - mean)
    return tuple(
        Neighbour(labels[i], float(cosines[i]), (1 - float(cosines[i])) / mean_distance)
        for i in candidates
        if labels[i].id != own_id
    )[:MAX_NEIGHBOURS]


def _hub(vocabulary: Vocabulary, vector: NDArray[np.float32]) -> tuple[tuple[str, str], ...]:
    return tuple(warning for warning in hub_warnings(vocabulary, [vector]) if warning is not None)


def _collisions(neighbours: Sequence[Neighbour]) -> tuple[tuple[str, str], ...]:
    close = [n for n in neighbours if n.distance <= COLLISION_DISTANCE]
    return tuple(
        ("near_duplicate", f"This model hardly tells it from the label {n.label.id}: {n.label.name}") for n in close
    )
