"""Every label's vector in memory, in one index per encoder and namespace.

Each similarity is one dot product of one label with one video, computed by the same code at the same memory alignment
regardless of the other labels and videos. A matrix product would be slightly faster for large batches, but its kernel,
and with it the last digits of every score, would change with the number of labels and videos.

Storage in float16 halves the memory. Each number of a vector v is then rounded to within 2 ** -11 of itself, and a
similarity to a video q differs by at most 2 ** -11 |v| |q| + 2 ** -25 sqrt(D) |q|, less than 0.0005 for unit vectors
(at most 0.0001 for 3,360 real labels). The products are still computed in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.approximate import ApproximateIndexBuilder, CodedContent, RecallStats
from vidlex.service.labels.index.slot_affine import LabelCalibration, SlotAffine
from vidlex.service.labels.index.vector_slabs import MAX_FLOAT16, Storage, VectorSlabs
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.names import fold

_MIN_DELETED = 4096
# Deleted slots cost memory and search time: beyond both bounds the live ones are copied to new slabs.
_MAX_DELETED_SHARE = 0.25
_COPY_BATCH = 8192


class IndexMismatch(ValueError):
    pass


@dataclass(frozen=True, eq=False)
class Matches:
    """The n labels that were compared, in the order of their last write."""

    labels: Sequence[IndexedLabel]
    similarity: NDArray[np.float32]  # [B, n] inner products
    adjusted: NDArray[np.float32]  # [B, n] these under ``calibration``; ``similarity`` itself without one
    calibration: LabelCalibration | None
    revision: int
    unknown_ids: tuple[str, ...] = ()
    is_approximate: bool = False  # about one in a hundred of the best top_k is missing


@dataclass(frozen=True, eq=False)
class _Snapshot:
    slabs: VectorSlabs
    num: int  # slots from here on were written later
    deleted: NDArray[np.bool_] | None  # [num] slots whose label was removed or replaced
    revision: int
    affine: SlotAffine | None = None  # of a calibration, for slots below ``num``

    @cached_property
    def slots(self) -> NDArray[np.intp]:
        return np.arange(self.num) if self.deleted is None else np.flatnonzero(~self.deleted)

    @cached_property
    def num_live(self) -> int:
        return self.num if self.deleted is None else self.num - int(np.count_nonzero(self.deleted))

    def find(self, label_ids: Collection[str]) -> NDArray[np.intp]:
        slots = self.slabs.slots_of(label_ids, self.num)
        if self.deleted is not None:
            slots[self.deleted[slots] & (slots >= 0)] = -1
        return slots  # -1: none


class LabelIndex:
    """Thread-safe. Writes are serialised; searches never wait and see complete writes only."""

    def __init__(
        self,
        dim: int,
        fingerprint: str,
        *,
        storage: Storage = "float32",
        approximate_builder: ApproximateIndexBuilder | None = None,
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim = dim
        self.fingerprint = fingerprint
        self.storage: Storage = storage
        self._snapshot = _Snapshot(VectorSlabs(dim, storage), 0, None, 0)
        self._approximate_builder = approximate_builder
        self._write_lock = threading.Lock()

    def __len__(self) -> int:
        return self._snapshot.num_live

    @property
    def revision(self) -> int:
        return self._snapshot.revision

    @property
    def recall_stats(self) -> RecallStats | None:
        newest = None if self._approximate_builder is None else self._approximate_builder.newest
        return None if newest is None else newest.stats

    # -- writes -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        labels: Sequence[IndexedLabel],
        vectors: NDArray[np.float32],
        removals: Collection[str] = (),
        *,
        fingerprint: str | None = None,
        revision: int | None = None,
    ) -> None:
        """Add or replace ``labels`` with ``vectors`` [n, D] and remove the ids in ``removals``, in one atomic change.

        Of two labels with the same id the later one is stored. Unknown ids in ``removals`` are ignored. Raises
        IndexMismatch, ValueError.
        """
        self._check(vectors, len(labels), fingerprint)
        last = {label.id: i for i, label in enumerate(labels)}
        if len(last) < len(labels):
            chosen = sorted(last.values())
            labels, vectors = [labels[i] for i in chosen], vectors[chosen]
        with self._write_lock:
            old = self._snapshot
            obsolete = old.find([*last, *removals])
            obsolete = obsolete[obsolete >= 0]
            old.slabs.append(labels, vectors)
            deleted = old.deleted
            if deleted is not None or len(obsolete):
                deleted = np.zeros(old.slabs.num, np.bool_)
                deleted[: old.num] = False if old.deleted is None else old.deleted
                deleted[obsolete] = True
            if old.affine is not None:
                old.affine.extend(old.slabs, old.slabs.num)
            new_revision = old.revision if revision is None else revision
            self._publish(_compacted(_Snapshot(old.slabs, old.slabs.num, deleted, new_revision, old.affine)))

    def calibrate(self, calibration: LabelCalibration | None) -> None:
        """Adjust all similarities from now on. Searches use the old calibration until the new one is complete."""
        with self._write_lock:
            old = self._snapshot
            affine = None if calibration is None else SlotAffine(calibration)
            if affine is not None:
                affine.extend(old.slabs, old.num)
            self._publish(replace(old, affine=affine))

    def replace(
        self,
        batches: Iterable[tuple[Sequence[IndexedLabel], NDArray[np.float32]]],
        *,
        fingerprint: str | None = None,
        revision: int,
        calibration: LabelCalibration | None = None,
    ) -> None:
        """Replace the content by ``batches`` of (labels, vectors [n, D]), whose ids must ascend throughout.

        Searches see the old content until the last batch is read. Raises IndexMismatch, ValueError.
        """
        with self._write_lock:
            slabs = VectorSlabs(self.dim, self.storage)
            affine = None if calibration is None else SlotAffine(calibration)
            last_id = ""
            for labels, vectors in batches:
                self._check(vectors, len(labels), fingerprint)
                for label in labels:
                    if label.id <= last_id:
                        raise ValueError(f"label ids must ascend, got {label.id} after {last_id}")
                    last_id = label.id
                slabs.append(labels, vectors)
                if affine is not None:
                    affine.extend(slabs, slabs.num)
            self._publish(_Snapshot(slabs, slabs.num, None, revision, affine))

    def _publish(self, snapshot: _Snapshot) -> None:
        self._snapshot = snapshot
        if self._approximate_builder is not None:
            self._approximate_builder.start_if_stale(self._content)

    def _content(self) -> CodedContent:
        snapshot = self._snapshot
        return CodedContent(snapshot.slabs, snapshot.affine, snapshot.num, snapshot.slots)

    # -- searches -----------------------------------------------------------------------------------------------------

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

        None is no filter; an empty ``label_ids`` or ``include_categories`` matches no label. ``top_k`` is the number of
        best labels per video that the caller uses (0: all). An approximate search then returns some thousand candidates
        that contain them, with exact similarities. Raises IndexMismatch, ValueError.
        """
        self._check(video_features, None, fingerprint)
        # Read before the snapshot, so that it is never newer.
        approximate = None if self._approximate_builder is None else self._approximate_builder.newest
        snapshot = self._snapshot
        slabs, num = snapshot.slabs, snapshot.num
        allowed, unknown = _allowed(snapshot, label_ids, include_categories, exclude_categories)
        num_allowed = snapshot.num_live if allowed is None else int(np.count_nonzero(allowed))
        if approximate is not None and not (
            approximate.codes_of(slabs, snapshot.affine)
            and approximate.is_usable(len(video_features), num_allowed, top_k)
        ):
            approximate = None
        queries = slabs.queries(video_features)
        if approximate is not None:
            if allowed is None and snapshot.deleted is not None:
                allowed = ~snapshot.deleted
            candidates = approximate.candidates(video_features, allowed, top_k)
            first = approximate.num  # slots from here on have no codes yet
            uncoded = np.arange(first, num) if allowed is None else first + np.flatnonzero(allowed[first:])
            slots = np.concatenate([candidates, uncoded])
        elif num_allowed == num:
            labels = _SlotLabels(slabs.labels, None, num)
            return _matches(labels, slabs.products(queries, num), snapshot, num, unknown)
        else:
            slots = snapshot.slots if allowed is None else np.flatnonzero(allowed)
        labels = _SlotLabels(slabs.labels, slots, len(slots))
        products = slabs.products_of(queries, slots)
        return _matches(labels, products, snapshot, slots, unknown, is_approximate=approximate is not None)

    @property
    def calibration(self) -> LabelCalibration | None:
        affine = self._snapshot.affine
        return None if affine is None else affine.calibration

    def batches(self) -> Iterator[tuple[Sequence[IndexedLabel], NDArray[np.float32]]]:
        """All labels with their vectors [n, D' >= D]; the numbers behind D are zero."""
        snapshot = self._snapshot
        slabs, slots = snapshot.slabs, snapshot.slots
        for start in range(0, len(slots), _COPY_BATCH):
            part = slots[start : start + _COPY_BATCH]
            yield _SlotLabels(slabs.labels, part, len(part)), slabs.vectors(part)

    def vector(self, label_id: str) -> NDArray[np.float32] | None:
        snapshot = self._snapshot
        slots = snapshot.find([label_id])
        return None if slots[0] < 0 else snapshot.slabs.vectors(slots)[0, : self.dim]  # rounded in float16

    def cosines(self, vector: NDArray[np.float32]) -> tuple[Sequence[IndexedLabel], NDArray[np.float32]]:
        """All labels, and the cosine of each with ``vector`` [D]: [n]. Zero if one of the two is zero."""
        self._check(vector[None], None, None)
        snapshot = self._snapshot
        slabs, slots = snapshot.slabs, snapshot.slots
        products = slabs.products_of(slabs.queries(vector[None]), slots)[0]
        lengths = slabs.norms(snapshot.num)[slots] * np.linalg.norm(vector)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        return _SlotLabels(slabs.labels, slots, len(slots)), cosines.clip(-1, 1)

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


def _matches(
    labels: Sequence[IndexedLabel],
    products: NDArray[np.float32],
    snapshot: _Snapshot,
    slots: NDArray[np.intp] | int,
    unknown: tuple[str, ...],
    *,
    is_approximate: bool = False,
) -> Matches:
    affine = snapshot.affine
    return Matches(
        labels,
        products,
        products if affine is None else affine.adjust(products, slots),
        None if affine is None else affine.calibration,
        snapshot.revision,
        unknown,
        is_approximate,
    )


def _allowed(
    snapshot: _Snapshot,
    label_ids: Collection[str] | None,
    include_categories: Collection[str] | None,
    exclude_categories: Collection[str] | None,
) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """Return a mask [num] of the live slots that pass the filters (None: no filter), and the unknown ids."""
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
        masks.append(snapshot.slabs.mask_of_categories(map(fold, include_categories), snapshot.num))
    if exclude_categories:
        masks.append(~snapshot.slabs.mask_of_categories(map(fold, exclude_categories), snapshot.num))
    if not masks:
        return None, unknown
    if snapshot.deleted is not None:
        masks.append(~snapshot.deleted)
    return np.logical_and.reduce(masks), unknown


class _SlotLabels(Sequence[IndexedLabel]):
    def __init__(self, labels: list[IndexedLabel], slots: NDArray[np.intp] | None, num: int) -> None:
        self._labels = labels
        self._slots = slots
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num))]
        if not -self._num <= index < self._num:
            raise IndexError(index)
        index = int(index) % self._num
        return self._labels[index if self._slots is None else int(self._slots[index])]


def _compacted(snapshot: _Snapshot) -> _Snapshot:
    num_deleted = snapshot.num - snapshot.num_live
    if num_deleted <= max(_MIN_DELETED, _MAX_DELETED_SHARE * snapshot.num):
        return snapshot
    old, slots = snapshot.slabs, snapshot.slots
    slabs = VectorSlabs(old.dim, old.storage)
    for start in range(0, len(slots), _COPY_BATCH):
        part = slots[start : start + _COPY_BATCH]
        slabs.append([old.labels[slot] for slot in part.tolist()], old.vectors(part))
    affine = None if snapshot.affine is None else SlotAffine(snapshot.affine.calibration)
    if affine is not None:
        affine.extend(slabs, slabs.num)
    return _Snapshot(slabs, slabs.num, None, snapshot.revision, affine)
