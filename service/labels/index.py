"""Every label's vector in memory, for exact search. One index per encoder and namespace.

Each similarity is one dot product of one label with one video, by the same code at the same memory alignment,
whatever else is in the index or in the batch. A matrix product would be a little faster for large batches, but its
kernel, and with it the last digits of every score, would change with the number of labels and videos.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from service.labels.blocks import Block, aligned_empty, change_block, cut_blocks, merge_small, padded, padded_dim
from service.labels.names import fold
from service.labels.records import Label


class IndexMismatch(ValueError):
    """A vector of another encoder or another dimension: it must not be compared with these labels."""


@dataclass(frozen=True, eq=False)
class Matches:
    """All labels that the search considered, in the order of creation."""

    labels: Sequence[Label]
    """n labels."""
    similarity: NDArray[np.float32]
    """[B, n] inner products."""
    revision: int
    """The namespace's revision that the labels are of."""
    unknown_ids: tuple[str, ...] = ()
    """Those of ``label_ids`` that are not in the index."""


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """One state of the index. Immutable, so a search holds it without a lock."""

    blocks: tuple[Block, ...]
    revision: int

    @cached_property
    def starts(self) -> list[str]:
        """Smallest id of each block."""
        return [block.labels[0].id for block in self.blocks]

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        return tuple(chain.from_iterable(block.labels for block in self.blocks))

    @cached_property
    def count(self) -> int:
        return sum(map(len, self.blocks))

    def block_of(self, label_id: str) -> int:
        """Position of the only block that can hold this id."""
        return max(0, bisect_right(self.starts, label_id) - 1)


class LabelIndex:
    """Thread-safe. Writers wait for each other; searches wait for nobody and see whole changes only."""

    def __init__(self, dim: int, fingerprint: str) -> None:
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim = dim
        self.fingerprint = fingerprint
        self._stride = padded_dim(dim)
        self._snapshot = _Snapshot((), 0)
        self._write_lock = threading.Lock()

    def __len__(self) -> int:
        return self._snapshot.count

    @property
    def revision(self) -> int:
        return self._snapshot.revision

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
        """``upsert`` and ``remove`` at once: searches see both or neither. ``revision`` None keeps the present one."""
        self._check(vectors, len(labels), fingerprint)
        upserts = {label.id: (label, vector) for label, vector in zip(labels, vectors, strict=True)}
        with self._write_lock:
            old = self._snapshot
            touched: dict[int, tuple[dict[str, tuple[Label, NDArray[np.float32]]], set[str]]] = {}
            for label_id, entry in upserts.items():
                touched.setdefault(old.block_of(label_id), ({}, set()))[0][label_id] = entry
            for label_id in removals:
                touched.setdefault(old.block_of(label_id), ({}, set()))[1].add(label_id)
            blocks: list[Block] = []
            for position, block in enumerate(old.blocks or (None,)):
                if position in touched:
                    blocks += change_block(block, *touched[position], self._stride)
                elif block is not None:
                    blocks.append(block)
            new_revision = old.revision if revision is None else revision
            self._snapshot = _Snapshot(tuple(merge_small(blocks)), new_revision)

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
            blocks: list[Block] = []
            last_id = ""
            for labels, vectors in batches:
                self._check(vectors, len(labels), fingerprint)
                for label in labels:
                    if label.id <= last_id:
                        raise ValueError(f"label ids must ascend, got {label.id} after {last_id}")
                    last_id = label.id
                blocks += cut_blocks(labels, padded(vectors, self._stride))
            self._snapshot = _Snapshot(tuple(merge_small(blocks)), revision)

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        video_features: NDArray[np.float32],
        *,
        label_ids: Collection[str] | None = None,
        include_categories: Collection[str] | None = None,
        exclude_categories: Collection[str] | None = None,
        fingerprint: str | None = None,
    ) -> Matches:
        """Similarity of B videos [B, D] with every label that passes all filters.

        None is no filter; an empty collection of ids or of categories to include lets nothing pass.
        Raises IndexMismatch, or ValueError for features that are not finite.
        """
        self._check(video_features, None, fingerprint)
        queries = padded(video_features, self._stride)[:, None, :]  # [B, 1, stride]
        snapshot = self._snapshot
        if label_ids is None and include_categories is None and not exclude_categories:
            similarity = np.empty((len(queries), snapshot.count), dtype=np.float32)
            start = 0
            for block in snapshot.blocks:
                np.vecdot(block.vectors, queries, out=similarity[:, start : start + len(block)])
                start += len(block)
            return Matches(snapshot.labels, similarity, snapshot.revision)
        labels: list[Label] = []
        parts = [np.empty((len(queries), 0), dtype=np.float32)]
        selected, unknown = _select(snapshot, label_ids)
        for block, candidates in selected:
            rows = _filter_rows(block, candidates, include_categories, exclude_categories)
            if len(rows):
                labels += [block.labels[row] for row in rows]
                picked = np.take(block.vectors, rows, axis=0, out=aligned_empty(len(rows), self._stride))
                parts.append(np.vecdot(picked, queries))
        return Matches(labels, np.concatenate(parts, axis=1), snapshot.revision, unknown)

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


def _select(
    snapshot: _Snapshot, label_ids: Collection[str] | None
) -> tuple[list[tuple[Block, NDArray[np.intp]]], tuple[str, ...]]:
    """Rows of each block that ``label_ids`` names, ascending, and the ids that no block has."""
    if label_ids is None:
        return [(block, np.arange(len(block), dtype=np.intp)) for block in snapshot.blocks], ()
    rows: dict[int, list[int]] = {}
    unknown = []
    for label_id in sorted(set(label_ids)):
        position = snapshot.block_of(label_id)
        row = snapshot.blocks[position].row_of.get(label_id) if snapshot.blocks else None
        if row is None:
            unknown.append(label_id)
        else:
            rows.setdefault(position, []).append(row)
    selected = [(snapshot.blocks[position], np.array(rows[position], dtype=np.intp)) for position in sorted(rows)]
    return selected, tuple(unknown)


def _filter_rows(
    block: Block,
    rows: NDArray[np.intp],
    include_categories: Collection[str] | None,
    exclude_categories: Collection[str] | None,
) -> NDArray[np.intp]:
    if include_categories is not None:
        rows = rows[block.mask_of_categories(map(fold, include_categories))[rows]]
    if exclude_categories:
        rows = rows[~block.mask_of_categories(map(fold, exclude_categories))[rows]]
    return rows
