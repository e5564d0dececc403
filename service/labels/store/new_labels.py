"""Which items of a step become labels, and within which quotas."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import ByteQuotaExceeded, LabelExists, ParentNotFound, QuotaExceeded, VidlexError
from vidlex.service.labels.store.label_size import label_bytes
from vidlex.service.labels.store.parents import resolve_parents
from vidlex.service.labels.store.records import Label, NewLabel, make_label, normalized_names
from vidlex.service.labels.store.redis_keys import make_label_id

AddResult = Label | VidlexError


@dataclass(frozen=True, eq=False)
class NewItem:
    index: int
    new: NewLabel
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class Room:
    """What a namespace holds and may hold."""

    num_labels: int
    max_labels: int
    num_bytes: int
    max_bytes: int

    def check(self, *, num_labels: int = 0, num_bytes: int) -> None:
        """For that many more. Raises QuotaExceeded, ByteQuotaExceeded."""
        if num_labels and self.num_labels + num_labels > self.max_labels:
            raise QuotaExceeded(f"This namespace is limited to {self.max_labels} labels")
        if num_bytes > 0 and self.num_bytes + num_bytes > self.max_bytes:
            raise ByteQuotaExceeded(f"This namespace is limited to {self.max_bytes} bytes of names and metadata")


def make_labels(
    items: Sequence[NewItem],
    owners: dict[str, str | None],
    parents: Collection[str],
    room: Room,
    *,
    revision: int,
    token: str,
) -> tuple[dict[int, AddResult], dict[int, Label]]:
    """A result for each item, and the labels among them, by the items' indexes.

    ``owners`` maps every normalised name, alias and parent of the items to its label's id, and gets the new ones;
    ``parents`` are the stored ones among the parents given by id.
    """
    results: dict[int, AddResult] = {}
    added: dict[int, Label] = {}
    num_bytes = 0
    now_ms = time.time_ns() // 1_000_000
    # Repeated, since a label may name a later one as its parent.
    pending = list(items)
    while pending:
        unresolved: list[NewItem] = []
        for item in pending:
            owner = next((owners[text] for text in normalized_names(item.new) if owners[text] is not None), None)
            try:
                if owner is not None:
                    raise exists(owner)
                new = replace(item.new, parents=resolve_parents(item.new.parents, owners, parents))
                size = label_bytes(new)
                room.check(num_labels=len(added) + 1, num_bytes=num_bytes + size)
            except ParentNotFound as error:
                results[item.index] = error
                unresolved.append(item)
                continue
            except VidlexError as error:
                results[item.index] = error
                continue
            label_id = make_label_id(revision, len(added), token)
            label = make_label(label_id, new, created_at_ms=now_ms, updated_at_ms=now_ms, revision=revision)
            num_bytes += size
            owners.update(dict.fromkeys(normalized_names(label), label.id))
            results[item.index] = added[item.index] = label
        if len(unresolved) == len(pending):
            break
        pending = unresolved
    return results, added


def exists(owner: str) -> LabelExists:
    return LabelExists("The name or an alias is already used by another label", existing_id=owner)
