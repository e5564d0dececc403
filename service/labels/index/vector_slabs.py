"""Append-only storage of the label index: slots of labels and vectors that are written once and never move.

A changed label gets a new slot, and its old slot is marked deleted elsewhere. A search therefore needs neither a lock
nor a copy, only the number of slots at its start and the deleted ones among them. Vectors are stored in slabs of fixed
size, whose memory is committed as they fill.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise, repeat
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.store.indexed_label import IndexedLabel

Storage = Literal["float32", "float16"]
NumberT = TypeVar("NumberT", np.float32, np.intp)

SLAB_ROWS = 32_768
# Size, as float32, of a block of rows that is used more than once: it stays in the cache.
PIECE_BYTES = 2**21
MAX_FLOAT16 = 65504.0

_FLOAT32 = np.dtype(np.float32)
_ALIGNMENT_BYTES = 64
_ALIGNMENT_FLOATS = 16
# Mask for a float16 that was sign-extended to 32 bits and shifted to the position of float32's fraction.
_FLOAT16_BITS = np.int32(-0x70002000)
# Those bits, read as float32, are the number times 2 ** -112, since the formats' exponents have different biases.
FLOAT16_SCALE = np.float32(2.0**112)
# If this share of a range of rows is selected, computing all its products is faster than gathering rows (measured).
_DENSE_SHARE = {"float32": 0.25, "float16": 0.6}


class VectorSlabs:
    """``append`` must be called by one thread at a time; the other methods from any thread, for slots below ``num``.

    Arrays of slots passed to ``vectors`` and ``products_of`` must ascend.
    """

    def __init__(self, dim: int, storage: Storage = "float32") -> None:
        self.dim = dim
        self.stride = -(-dim // _ALIGNMENT_FLOATS) * _ALIGNMENT_FLOATS
        self.storage: Storage = storage
        self.dtype = np.dtype(storage)
        self.labels: list[IndexedLabel] = []
        self._slabs: list[NDArray[np.float32] | NDArray[np.float16]] = []
        self._norms = AppendOnlyArray(np.float32())  # before rounding to the storage type
        self._slot_of: dict[str, int] = {}
        self._previous_slot: dict[int, int] = {}
        self._slots_of_category: dict[str, AppendOnlyArray[np.intp]] = {}
        self._piece_rows = max(1, PIECE_BYTES // (4 * self.stride))
        self._dense_share = _DENSE_SHARE[storage]

    @property
    def num(self) -> int:
        return len(self.labels)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, labels: Sequence[IndexedLabel], vectors: NDArray[np.float32] | NDArray[np.float16]) -> None:
        first = self.num
        done = 0
        while done < len(labels):
            slab, row = divmod(first + done, SLAB_ROWS)
            if slab == len(self._slabs):
                self._slabs.append(aligned_empty(SLAB_ROWS, self.stride, self.dtype))
            num = min(len(labels) - done, SLAB_ROWS - row)
            target = self._slabs[slab][row : row + num]
            target[:, : self.dim] = vectors[done : done + num, : self.dim]
            target[:, self.dim :] = 0
            done += num
        self._norms.extend(np.linalg.norm(vectors[:, : self.dim].astype(np.float32, copy=False), axis=1))
        for slot, label in enumerate(labels, first):
            previous = self._slot_of.get(label.id)
            if previous is not None:
                self._previous_slot[slot] = previous
            for category in label.categories:
                self._slots_of_category.setdefault(category, AppendOnlyArray(np.intp())).append(slot)
            self.labels.append(label)
            self._slot_of[label.id] = slot

    # -- lookups ------------------------------------------------------------------------------------------------------

    def slots_of(self, label_ids: Collection[str], num: int) -> NDArray[np.intp]:
        """The newest slot below ``num`` of each id, deleted or not; -1 if there is none."""
        slots = np.fromiter(map(self._slot_of.get, label_ids, repeat(-1)), np.intp, len(label_ids))
        for i in np.flatnonzero(slots >= num):  # written after the caller's snapshot
            slot: int | None = int(slots[i])
            while slot is not None and slot >= num:
                slot = self._previous_slot.get(slot)
            slots[i] = -1 if slot is None else slot
        return slots

    def mask_of_categories(self, categories: Iterable[str], num: int) -> NDArray[np.bool_]:
        mask = np.zeros(num, dtype=np.bool_)
        for category in categories:
            members = self._slots_of_category.get(category)
            if members is not None:
                slots = members.values()
                mask[slots[: np.searchsorted(slots, num)]] = True
        return mask

    def norms(self, num: int) -> NDArray[np.float32]:
        return self._norms.values()[:num]

    def vectors(self, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        out = aligned_empty(len(slots), self.stride)  # zero after D
        for slab, start, stop in self._slabs_of(slots):
            rows = slots[start:stop] - slab * SLAB_ROWS
            if self.storage == "float32":
                np.take(self._slabs[slab], rows, axis=0, out=out[start:stop], mode="clip")
            else:
                out[start:stop] = self._slabs[slab][rows]
        return out

    # -- products -----------------------------------------------------------------------------------------------------

    def queries(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [B, D] in the form for ``products``. Raises ValueError if too large for float16 storage."""
        queries = aligned_empty(len(features), self.stride)
        queries[:, : self.dim] = features
        queries[:, self.dim :] = 0
        if self.storage == "float16":
            if features.size and np.abs(features).max() > MAX_FLOAT16:
                raise ValueError("features are too large for an index of float16")
            queries *= FLOAT16_SCALE
        return queries

    def products(self, queries: NDArray[np.float32], num: int) -> NDArray[np.float32]:
        """[B, num] inner products of ``queries(features)`` with the first ``num`` slots, including deleted ones."""
        out = np.empty((len(queries), num), dtype=np.float32)
        # One query reads each row once; several read a block repeatedly while it is cached.
        whole = len(queries) == 1 and self.storage == "float32"
        step = SLAB_ROWS if whole else self._piece_rows
        scratch = self._scratch()
        for slab in range(-(-num // SLAB_ROWS)):
            begin = slab * SLAB_ROWS
            for start in range(0, min(SLAB_ROWS, num - begin), step):
                stop = min(start + step, SLAB_ROWS, num - begin)
                rows = self._slabs[slab][start:stop]
                np.vecdot(self._widened(rows, scratch), queries[:, None], out=out[:, begin + start : begin + stop])
        return out

    def products_of(self, queries: NDArray[np.float32], slots: NDArray[np.intp]) -> NDArray[np.float32]:
        out = np.empty((len(queries), len(slots)), dtype=np.float32)
        size = self._piece_rows
        scratch, picked = self._scratch(), aligned_empty(min(size, len(slots)), self.stride, self.dtype)
        for slab, slab_start, slab_stop in self._slabs_of(slots):
            stored = self._slabs[slab]
            for start in range(slab_start, slab_stop, size):
                rows = slots[start : min(start + size, slab_stop)] - slab * SLAB_ROWS
                target = out[:, start : start + len(rows)]
                low, span = int(rows[0]), int(rows[-1] - rows[0]) + 1
                if len(rows) >= self._dense_share * span:
                    dense = np.vecdot(self._widened(stored[low : low + span], scratch), queries[:, None])
                    np.take(dense, rows - low, axis=1, out=target, mode="clip")
                else:
                    np.take(stored, rows, axis=0, out=picked[: len(rows)], mode="clip")
                    np.vecdot(self._widened(picked[: len(rows)], scratch), queries[:, None], out=target)
        return out

    def _scratch(self) -> NDArray[np.float32]:
        return aligned_empty(
            int(self._piece_rows / self._dense_share) + 1 if self.storage == "float16" else 0, self.stride
        )

    def _widened(
        self, rows: NDArray[np.float32] | NDArray[np.float16], scratch: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The rows as float32; float16 rows are scaled by 2 ** -112, which ``queries`` compensates exactly."""
        if self.storage == "float32":
            return cast("NDArray[np.float32]", rows)
        wide = scratch[: len(rows)]
        widen_float16(cast("NDArray[np.float16]", rows), wide)
        return wide

    @staticmethod
    def _slabs_of(slots: NDArray[np.intp]) -> Iterable[tuple[int, int, int]]:
        if len(slots):
            slabs = np.arange(slots[0] // SLAB_ROWS, slots[-1] // SLAB_ROWS + 2)
            for slab, (start, stop) in zip(slabs, pairwise(np.searchsorted(slots, slabs * SLAB_ROWS)), strict=False):
                if start < stop:  # slots[start:stop] are in the slab
                    yield int(slab), int(start), int(stop)


def widen_float16(rows: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Rows [n, D] into ``out`` [n, D], scaled by 1 / FLOAT16_SCALE.

    numpy converts float16 number by number, ten times slower than these three vectorised steps.
    """
    bits = out.view(np.int32)
    np.copyto(bits, rows.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _FLOAT16_BITS, out=bits)


class AppendOnlyArray(Generic[NumberT]):
    """Numbers appended by one thread and read by any."""

    def __init__(self, zero: NumberT) -> None:
        self._buffer: NDArray[NumberT] = np.full(16, zero)
        self._num = 0

    def append(self, value: int) -> None:
        self._reserve(1)
        self._buffer[self._num] = value
        self._num += 1

    def extend(self, values: NDArray[NumberT]) -> None:
        self._reserve(len(values))
        self._buffer[self._num : self._num + len(values)] = values
        self._num += len(values)

    def values(self) -> NDArray[NumberT]:
        num = self._num  # read first: the buffer read next has at least this many
        return self._buffer[:num]

    def _reserve(self, num: int) -> None:
        if self._num + num > len(self._buffer):
            larger = np.empty(max(2 * len(self._buffer), self._num + num), self._buffer.dtype)
            larger[: self._num] = self._buffer[: self._num]
            self._buffer = larger


def aligned_empty(num_rows: int, stride: int, dtype: np.dtype[Any] = _FLOAT32) -> NDArray[Any]:
    num_bytes = num_rows * stride * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT_BYTES, dtype=np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[offset : offset + num_bytes].view(dtype).reshape(num_rows, stride)
