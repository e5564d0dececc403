"""What the index of a vocabulary keeps of a label."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from vidlex.service.labels.store.records import Label


@dataclass(frozen=True, slots=True)
class IndexedLabel:
    """What comparisons and their answers need. The rest stays in the store: 16 KB of metadata are half a megabyte of
    Python objects.
    """

    id: str
    name: str
    categories: tuple[str, ...]
    threshold: float | None

    @classmethod
    def of(cls, label: Label) -> IndexedLabel:
        return cls(label.id, label.name, tuple(map(sys.intern, label.categories)), label.threshold)
