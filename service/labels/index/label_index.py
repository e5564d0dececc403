"""Every label's vector in memory. One index per encoder and namespace, so that neither is ever mixed.

Each similarity is one dot product of one label with one video, by the same code at the same memory alignment,
whatever else is in the index or in the batch. A matrix product would be a little faster for large batches, but its
kernel, and with it the last digits of every score, would change with the number of labels and videos.

With storage in float16 the vectors take half the memory. A vector v is then kept to within 2 ** -11 of each number,
so that a similarity to a video q is off by at most 2 ** -11 |v| |q| + 2 ** -25 sqrt(D) |q|, under 0.0005 for unit
vectors (at most 0.0001 between 3,360 real labels). The products themselves are in float32, and as independent.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.approximate import Approximation, Facts
from vidlex.service.labels.index.vector_slabs import MAX_FLOAT16, Rows, Storage
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.records import Label

_MIN_DEAD = 4096
_MAX_DEAD_SHARE = 0.25
"""Dead slots cost memory and a part of each search: beyond both bounds the living ones move together."""
_COPIED_ROWS = 8192


class IndexMismatch(ValueError):
    """A vector of another encoder or another dimension: it must not be compared with these labels."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The labels that the search considered, in the order in which they were last written."""

    labels: Sequence[Label]
    """n labels."""
    similarity: NDArray[np.float32]
    """[B, n] inner products."""
    revision: int
    """The namespace's revision that the labels are of."""
    unknown_ids: tuple[str, ...] = ()
    """Those of ``label_ids`` that are not in the index."""
    approximate: bool = False
    """True where only likely labels were considered: one of the best ``top_k`` may be missing, once in a hundred."""


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """One state of the index. Immutable, so a search holds it without a lock."""

    rows: Rows
    num: int
    """Slots 0 to num - 1 are of this state or an earlier one."""
    dead: NDArray[np.bool_] | None
    """[num] Slots whose label was removed or written again; None when there are none."""
    revision: int

    @cached_property
    def slots(self) -> NDArray[np.intp]:
        """The living slots, ascending."""
        return np.arange(self.num) if self.dead is None else np.flatnonzero(~self.dead)

    @cached_property
    def count(self) -> int:
        return self.num if self.dead is None else self.num - int(np.count_nonzero(self.dead))

    def find(self, label_ids: Collection[str]) -> NDArray[np.intp]:
        """The living slot of each id, -1 for those that are not there."""
        slots = self.rows.slots_of(label_ids, self.num)
        if self.dead is not None:
            slots[self.dead[slots] & (slots >= 0)] = -1
        return slots


class LabelIndex:
    """Thread-safe. Writers wait for each other; searches wait for nobody and see whole changes only."""

    def __init__(
        self, dim: int, fingerprint: str, *, storage: Storage = "float32", approximation: Approximation | None = None
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim = dim
        self.fingerprint = fingerprint
        self.storage: Storage = storage
        self._snapshot = _Snapshot(Rows(dim, storage), 0, None, 0)
        self._approximation = approximation
        self._write_lock = threading.Lock()

    def __len__(self) -> int:
        return self._snapshot.count

    @property
    def revision(self) -> int:
        return self._snapshot.revision

    @property
    def approximate(self) -> Facts | None:
        """What approximate searches go by at present; None where all are exact."""
        return None if self._approximation is None else self._approximation.facts

    # -- writing ------------------------------------------------------------------------------------------------------

    def upsert(
        self,
        labels: Sequence[Label],
        vectors: NDArray[np.float32],
        *,
        fingerprint: str | None = None,
        revision: int | None = None,
    ) -> None:
        """Add labels, or replace those of the same id, with vectors [n, D]. Raises IndexMismatch, ValueError."""
        self.apply(labels, vectors, (), fingerprint=fingerprint, revision=revision)

    def remove(self, label_ids: Collection[str], *, revision: int | None = None) -> None:
        """Remove labels; ids that are not there are ignored."""
        self.apply((), np.empty((0, self.dim), np.float32), label_ids, revision=revision)

    def apply(
        self,
        labels: Sequence[Label],
        vectors: NDArray[np.float32],
        removals: Collection[str],
        *,
        fingerprint: str | None = None,
        revision: int | None = None,
    ) -> None:
        """``upsert`` and ``remove`` at once: searches see both or neither. ``revision`` None keeps the present one.

        Of two labels with one id the later counts.
        """
        self._check(vectors, len(labels), fingerprint)
        last = {label.id: place for place, label in enumerate(labels)}
        if len(last) < len(labels):
            places = sorted(last.values())
            labels, vectors = [labels[place] for place in places], vectors[places]
        with self._write_lock:
            old = self._snapshot
            gone = old.find([*last, *removals])
            gone = gone[gone >= 0]
            old.rows.append(labels, vectors)
            dead = old.dead
            if dead is not None or len(gone):
                dead = np.zeros(old.rows.num, np.bool_)
                dead[: old.num] = False if old.dead is None else old.dead
                dead[gone] = True
            new_revision = old.revision if revision is None else revision
            self._publish(_tidied(_Snapshot(old.rows, old.rows.num, dead, new_revision)))

    def replace(
        self,
        batches: Iterable[tuple[Sequence[Label], NDArray[np.float32]]],
        *,
        fingerprint: str | None = None,
        revision: int,
    ) -> None:
        """Exchange the whole content for ``batches`` of (labels, vectors [n, D]) with ids ascending throughout.

        Searches see the old content until the last batch is in. Raises IndexMismatch, ValueError.
        """
        with self._write_lock:
            rows = Rows(self.dim, self.storage)
            last_id = ""
            for labels, vectors in batches:
                self._check(vectors, len(labels), fingerprint)
                for label in labels:
                    if label.id <= last_id:
                        raise ValueError(f"label ids must ascend, got {label.id} after {last_id}")
                    last_id = label.id
                rows.append(labels, vectors)
            self._publish(_Snapshot(rows, rows.num, None, revision))

    def _publish(self, snapshot: _Snapshot) -> None:
        self._snapshot = snapshot
        if self._approximation is not None:
            self._approximation.keep_up(snapshot.rows, snapshot.num, self._content)

    def _content(self) -> tuple[Rows, int, NDArray[np.intp]]:
        snapshot = self._snapshot
        return snapshot.rows, snapshot.num, snapshot.slots

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        video_features: NDArray[np.float32],
        *,
        label_ids: Collection[str] | None = None,
        include_categories: Collection[str] | None = None,
        exclude_categories: Collection[str] | None = None,
        fingerprint: str | None = None,
        top_k: int = 0,
    ) -> Matches:
        """Similarity of B videos [B, D] with every label that passes all filters.

        None is no filter; an empty collection of ids or of categories to include lets nothing pass.
        ``top_k`` says that only so many best are wanted (of each video; 0: all). In approximate mode the matches
        then are some thousand labels that hold them, with exact similarities. Raises IndexMismatch, or ValueError
        for features that are not finite.
        """
        self._check(video_features, None, fingerprint)
        codes = None if self._approximation is None else self._approximation.codes  # before the snapshot: never newer
        snapshot = self._snapshot
        rows, num = snapshot.rows, snapshot.num
        allowed, unknown = _allowed(snapshot, label_ids, include_categories, exclude_categories)
        num_allowed = snapshot.count if allowed is None else int(np.count_nonzero(allowed))
        approximate = codes is not None and codes.serves(rows, len(video_features), num_allowed, top_k)
        queries = rows.queries(video_features)
        if approximate:
            assert codes is not None
            if allowed is None and snapshot.dead is not None:
                allowed = ~snapshot.dead
            likely = codes.candidates(video_features, allowed, top_k)
            tail = np.arange(codes.num, num) if allowed is None else codes.num + np.flatnonzero(allowed[codes.num :])
            slots = np.concatenate([likely, tail])
        elif num_allowed == num:
            return Matches(_Picked(rows.labels, None, num), rows.products(queries, num), snapshot.revision, unknown)
        else:
            slots = snapshot.slots if allowed is None else np.flatnonzero(allowed)
        labels = _Picked(rows.labels, slots, len(slots))
        return Matches(labels, rows.products_of(queries, slots), snapshot.revision, unknown, approximate)

    def vector(self, label_id: str) -> NDArray[np.float32] | None:
        """[D] The label's vector as it is compared (rounded, in float16), or None."""
        snapshot = self._snapshot
        slots = snapshot.find([label_id])
        return None if slots[0] < 0 else snapshot.rows.vectors(slots)[0, : self.dim]

    def cosines(self, vector: NDArray[np.float32]) -> tuple[Sequence[Label], NDArray[np.float32]]:
        """All labels, and the cosine of each with ``vector`` [D]: [n]. Zero where one of them has no length."""
        self._check(vector[None], None, None)
        snapshot = self._snapshot
        rows, slots = snapshot.rows, snapshot.slots
        products = rows.products_of(rows.queries(vector[None]), slots)[0]
        lengths = rows.norms(snapshot.num)[slots] * np.linalg.norm(vector)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        return _Picked(rows.labels, slots, len(slots)), cosines.clip(-1, 1)

    def _check(self, vectors: NDArray[np.float32], num_labels: int | None, fingerprint: str | None) -> None:
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise IndexMismatch(f"vectors of encoder {fingerprint} for an index of {self.fingerprint}")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise IndexMismatch(f"vectors must be [n, {self.dim}], got {list(vectors.shape)}")
        if vectors.dtype != np.float32:
            raise ValueError(f"vectors must be float32, got {vectors.dtype}")
        if num_labels is not None and num_labels != vectors.shape[0]:
            raise ValueError(f"{num_labels} labels for {vectors.shape[0]} vectors")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors must be finite")
        if self.storage == "float16" and vectors.size and np.abs(vectors).max() >= MAX_FLOAT16:
            raise ValueError("vectors are too large for an index of float16")


def _allowed(
    snapshot: _Snapshot,
    label_ids: Collection[str] | None,
    include_categories: Collection[str] | None,
    exclude_categories: Collection[str] | None,
) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """[num] True for the living slots that pass the filters (None: no filter), and the ids that are not there."""
    masks = []
    unknown: tuple[str, ...] = ()
    if label_ids is not None:
        found = snapshot.find(label_ids)
        if len(found) and found.min() < 0:
            unknown = tuple(sorted({i for i, slot in zip(label_ids, found.tolist(), strict=True) if slot < 0}))
        mask = np.zeros(snapshot.num, np.bool_)
        mask[found[found >= 0]] = True
        masks.append(mask)
    if include_categories is not None:
        masks.append(snapshot.rows.mask_of_categories(map(fold, include_categories), snapshot.num))
    if exclude_categories:
        masks.append(~snapshot.rows.mask_of_categories(map(fold, exclude_categories), snapshot.num))
    if not masks:
        return None, unknown
    if snapshot.dead is not None:
        masks.append(~snapshot.dead)
    return np.logical_and.reduce(masks), unknown


class _Picked(Sequence[Label]):
    """Labels of some slots, without a list of a hundred thousand for the twenty that are looked at."""

    def __init__(self, labels: list[Label], slots: NDArray[np.intp] | None, num: int) -> None:
        self._labels = labels
        self._slots = slots
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._num))]
        if not -self._num <= place < self._num:
            raise IndexError(place)
        place = int(place) % self._num
        return self._labels[place if self._slots is None else int(self._slots[place])]


def _tidied(snapshot: _Snapshot) -> _Snapshot:
    """The same without dead slots, once there are many. Each label pays for about four moves of itself at most."""
    num_dead = snapshot.num - snapshot.count
    if num_dead <= max(_MIN_DEAD, _MAX_DEAD_SHARE * snapshot.num):
        return snapshot
    old, slots = snapshot.rows, snapshot.slots
    rows = Rows(old.dim, old.storage)
    for start in range(0, len(slots), _COPIED_ROWS):
        part = slots[start : start + _COPIED_ROWS]
        rows.append([old.labels[slot] for slot in part.tolist()], old.vectors(part))
    return _Snapshot(rows, rows.num, None, snapshot.revision)
