"""What is kept of the answer to a request with an Idempotency-Key: references, from which it is built again.

A created label needs its id, times and parents: the request, which is repeated with the key, has everything else. Of a
label that existed already only the id is kept. An answer of 1,000 labels takes some 30 KB, whatever the labels contain.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidlex.service.labels.store.records import Label, NewLabel, clean, make_label

_MAX_BYTES = 16 * 2**20  # unpacked


@dataclass(frozen=True)
class CreatedLabel:
    id: str
    created_at_ms: int
    revision: int
    parents: tuple[str, ...]

    @classmethod
    def of(cls, label: Label) -> CreatedLabel:
        return cls(label.id, label.created_at_ms, label.revision, label.parents)

    def label(self, new: NewLabel) -> Label:
        """As it was created from ``new``, also if it has been changed or removed since."""
        cleaned = replace(clean(new), parents=self.parents)
        times = {"created_at_ms": self.created_at_ms, "updated_at_ms": self.created_at_ms}
        return make_label(self.id, cleaned, **times, revision=self.revision)


@dataclass(frozen=True)
class ExistingLabel:
    id: str


@dataclass(frozen=True)
class Refusal:
    problem: dict[str, Any]  # a problem document


Answer = Sequence[CreatedLabel | ExistingLabel | Refusal]  # one per item of the request


def created_to_json(label: CreatedLabel) -> str:
    return json.dumps([label.id, label.created_at_ms, label.revision, *label.parents], separators=(",", ":"))


def created_from_json(raw: bytes) -> CreatedLabel | None:
    """None for what an older version has written."""
    try:
        return _created(json.loads(raw))
    except (ValueError, TypeError):
        return None


def pack_answer(answer: Answer) -> bytes:
    items: list[Any] = []
    for item in answer:
        if isinstance(item, CreatedLabel):
            items.append([item.id, item.created_at_ms, item.revision, *item.parents])
        else:
            items.append(item.id if isinstance(item, ExistingLabel) else item.problem)
    return zlib.compress(json.dumps(items, separators=(",", ":")).encode())


def unpack_answer(raw: bytes) -> Answer | None:
    """None for what an older version has written."""
    try:
        items = json.loads(zlib.decompressobj().decompress(raw, _MAX_BYTES))
        return [_item(item) for item in items]
    except (zlib.error, ValueError, TypeError):
        return None


def _item(item: Any) -> CreatedLabel | ExistingLabel | Refusal:
    if isinstance(item, str):
        return ExistingLabel(item)
    return Refusal(item) if isinstance(item, dict) else _created(item)


def _created(values: Any) -> CreatedLabel:
    label_id, created_at_ms, revision, *parents = values
    return CreatedLabel(str(label_id), int(created_at_ms), int(revision), tuple(map(str, parents)))
