"""A calibration in the label index: one scale and one shift per slot, ``adjusted = scale * similarity + shift``.

They are computed from a slot's stored vector alone, so that they do not depend on the other labels, nor on whether the
label was added before or after the calibration.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.vector_slabs import AppendOnlyArray, VectorSlabs

_BATCH = 8192


class LabelCalibration(Protocol):
    @property
    def fingerprint(self) -> str: ...

    @property
    def centre(self) -> NDArray[np.float32]: ...  # [D]: ``shift + scale * (t . centre)`` differs little between labels

    def affine(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale > 0 and shift [V] of labels [V, D' >= D]; the numbers behind D are zero."""
        ...


class SlotAffine:
    """Of the slots of ``slabs`` in order. ``extend`` is called by one thread at a time; readers take slots below
    ``num`` of their snapshot."""

    def __init__(self, calibration: LabelCalibration) -> None:
        self.calibration = calibration
        self._scale = AppendOnlyArray(np.float32())
        self._shift = AppendOnlyArray(np.float32())

    def extend(self, slabs: VectorSlabs, num: int) -> None:
        """To the first ``num`` slots."""
        for start in range(len(self._scale.values()), num, _BATCH):
            vectors = slabs.vectors(np.arange(start, min(start + _BATCH, num)))
            scale, shift = self.calibration.affine(vectors)
            self._shift.extend(shift)
            self._scale.extend(scale)

    def of(self, slots: NDArray[np.intp] | int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of an array of slots, or of the first ones."""
        scale, shift = self._scale.values(), self._shift.values()
        return (scale[:slots], shift[:slots]) if isinstance(slots, int) else (scale[slots], shift[slots])

    def adjust(self, similarity: NDArray[np.float32], slots: NDArray[np.intp] | int) -> NDArray[np.float32]:
        """Of similarities [B, n]."""
        scale, shift = self.of(slots)
        adjusted: NDArray[np.float32] = similarity * scale
        adjusted += shift
        return adjusted


class FoldedAffine:
    """Vectors whose plain inner products with folded queries are the adjusted similarities, for short codes.

        scale * (t . f) + shift = (scale * t) . (f - centre) + rest,    rest = shift + scale * (t . centre)

    Codes keep only sixteen values for each pair of numbers. ``rest`` therefore takes two pairs: its nearest sixteenth,
    and the difference to it.
    """

    NUM_MORE = 4

    def __init__(self, slabs: VectorSlabs, affine: SlotAffine, slots: NDArray[np.intp]) -> None:
        """``slots``: of the labels from which the range of ``rest`` is taken, not empty."""
        self._slabs, self._affine = slabs, affine
        self._centre = np.zeros(slabs.stride, np.float32)
        self._centre[: slabs.dim] = affine.calibration.centre
        rest = self._rest(slabs.vectors(slots), slots)
        self._low = float(rest.min())
        self._step = max(float(np.ptp(rest)) / 15, 1e-9)

    def vectors(self, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        """[n, stride + NUM_MORE]"""
        vectors = self._slabs.vectors(slots)
        rest = self._rest(vectors, slots)
        coarse = self._low + self._step * np.clip(np.rint((rest - self._low) / self._step), 0, 15)
        out = np.zeros((len(slots), self._slabs.stride + self.NUM_MORE), np.float32)
        out[:, : self._slabs.stride] = vectors * self._affine.of(slots)[0][:, None]
        out[:, -self.NUM_MORE] = coarse
        out[:, -self.NUM_MORE + 2] = rest - coarse
        return out

    def queries(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.zeros((len(features), self._slabs.stride + self.NUM_MORE), np.float32)
        out[:, : self._slabs.dim] = features - self._centre[: self._slabs.dim]
        out[:, -self.NUM_MORE] = out[:, -self.NUM_MORE + 2] = 1
        return out

    def _rest(self, vectors: NDArray[np.float32], slots: NDArray[np.intp]) -> NDArray[np.float32]:
        scale, shift = self._affine.of(slots)
        rest: NDArray[np.float32] = shift + scale * (vectors @ self._centre)
        return rest
