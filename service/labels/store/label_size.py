"""The size of a label, for the quota of a namespace. Migration 4 counts stored labels in the same way."""

from __future__ import annotations

import json

from vidlex.service.labels.store.records import Label, NewLabel

OVERHEAD_BYTES = 256  # ids, times, places in indexes; vectors are not counted: their number and length are bounded


def label_bytes(label: NewLabel | Label) -> int:
    """UTF-8 of a label's texts and of its metadata's compact JSON, and the overhead."""
    texts = (label.name, *label.aliases, *label.categories, *label.parents)
    metadata = json.dumps(label.metadata, ensure_ascii=False, separators=(",", ":"))
    return OVERHEAD_BYTES + sum(len(text.encode()) for text in (*texts, metadata))
