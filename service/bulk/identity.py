"""The digest of a vocabulary: equal for all engines that score the same labels in the same way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence


def vocabulary_digest(
    labels: Iterable[tuple[str | None, str, float | None, Sequence[str]]], calibration: str | None
) -> str:
    """Of (id, name, threshold, categories), in whatever order, and the calibration's fingerprint. ``id`` is None for
    a label that is not stored. Vectors follow from the names and the model. 64 hexadecimal digits."""
    rows = sorted(
        [label_id or "", name, threshold, sorted(categories)] for label_id, name, threshold, categories in labels
    )
    text = json.dumps({"labels": rows, "calibration": calibration}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
