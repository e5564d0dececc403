"""Immutable pieces of the label index: some thousand labels each, sorted by id, with their vectors.

A change builds the touched block anew and leaves the others alone, so a reader keeps whatever it holds, and adding
one label among a million copies one block, not the matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.labels.records import Label

BLOCK_LABELS = 1024
"""Blocks are cut to this size and split at twice of it: 2 MB of float32 at D = 512, which the cache still holds."""
_ALIGNMENT_BYTES = 64
_ALIGNMENT_FLOATS = 16


class Block:
    """Labels sorted by id with their vectors [n, stride], zero-padded from D. Never changed after construction."""

    def __init__(self, labels: tuple[Label, ...], vectors: NDArray[np.float32]) -> None:
        self.labels = labels
        self.vectors = vectors
        vectors.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {label.id: row for row, label in enumerate(self.labels)}

    @cached_property
    def _rows_of_category(self) -> dict[str, NDArray[np.intp]]:
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(self.labels):
            for category in label.categories:
                rows.setdefault(category, []).append(row)
        return {category: np.array(members, dtype=np.intp) for category, members in rows.items()}

    def mask_of_categories(self, categories: Iterable[str]) -> NDArray[np.bool_]:
        """[n] True for the labels in at least one of the categories."""
        mask = np.zeros(len(self), dtype=np.bool_)
        for category in categories:
            rows = self._rows_of_category.get(category)
            if rows is not None:
                mask[rows] = True
        return mask


def padded_dim(dim: int) -> int:
    """D rounded up so that every row of an aligned matrix starts on a 64-byte border."""
    return -(-dim // _ALIGNMENT_FLOATS) * _ALIGNMENT_FLOATS


def aligned_empty(num_rows: int, stride: int) -> NDArray[np.float32]:
    """Uninitialised [num_rows, stride] float32 that starts on a 64-byte border."""
    raw = np.empty(num_rows * stride * 4 + _ALIGNMENT_BYTES, dtype=np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[offset : offset + num_rows * stride * 4].view(np.float32).reshape(num_rows, stride)


def padded(vectors: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """[n, D] to an aligned copy [n, stride], zero behind D."""
    copy = aligned_empty(vectors.shape[0], stride)
    copy[:, : vectors.shape[1]] = vectors
    copy[:, vectors.shape[1] :] = 0
    return copy


def cut_blocks(labels: Sequence[Label], vectors: NDArray[np.float32]) -> list[Block]:
    """Labels sorted by id, vectors [n, stride], to blocks of BLOCK_LABELS. Copies."""
    blocks = []
    for start in range(0, len(labels), BLOCK_LABELS):
        part = vectors[start : start + BLOCK_LABELS]
        blocks.append(Block(tuple(labels[start : start + BLOCK_LABELS]), padded(part, part.shape[1])))
    return blocks


def change_block(
    block: Block | None, upserts: Mapping[str, tuple[Label, NDArray[np.float32]]], removals: set[str], stride: int
) -> list[Block]:
    """The block after some changes: none when nothing is left, several when it grew too large.

    ``upserts``: label id to (label, vector [D]). ``None`` is the block before the first label.
    """
    merged: list[tuple[Label, NDArray[np.float32] | None, int]] = []
    if block is not None:
        for row, label in enumerate(block.labels):
            if label.id not in upserts and label.id not in removals:
                merged.append((label, None, row))
    merged += [(label, vector, -1) for label, vector in upserts.values()]
    if not merged:
        return []
    merged.sort(key=lambda entry: entry[0].id)
    vectors = aligned_empty(len(merged), stride)
    kept = [(new_row, old_row) for new_row, (_, vector, old_row) in enumerate(merged) if vector is None]
    if block is not None and kept:
        new_rows, old_rows = np.array(kept, dtype=np.intp).T
        vectors[new_rows] = block.vectors[old_rows]
    for new_row, (_, vector, _) in enumerate(merged):
        if vector is not None:
            vectors[new_row, : len(vector)] = vector
            vectors[new_row, len(vector) :] = 0
    labels = tuple(label for label, _, _ in merged)
    if len(labels) > 2 * BLOCK_LABELS:
        return cut_blocks(labels, vectors)
    return [Block(labels, vectors)]


def merge_small(blocks: Sequence[Block]) -> list[Block]:
    """Join neighbours that together fit into one block, so that removals do not leave crumbs."""
    result: list[Block] = []
    for block in blocks:
        if result and len(result[-1]) + len(block) <= BLOCK_LABELS:
            left = result.pop()
            vectors = aligned_empty(len(left) + len(block), block.vectors.shape[1])
            vectors[: len(left)] = left.vectors
            vectors[len(left) :] = block.vectors
            result.append(Block(left.labels + block.labels, vectors))
        else:
            result.append(block)
    return result
