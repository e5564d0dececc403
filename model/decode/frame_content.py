"""What frames show, without a model: one colour, the picture before again, another shot.

Everything is judged on means of 32 x 32 cells, which noise, compression and small logos hardly change. Thresholds were
chosen on the sample videos of `vidlex samples` and on still pictures encoded at low rates. On 33 clips of other origin,
looks 2.5 s apart: 98 % of cuts between unlike scenes start a shot, and 4 % of the pairs within one scene.

Imports no torch: every decode process loads this module and must stay small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameContent

_CELLS = 32  # to a side
_BLANK_RANGE = 6.0  # grey levels from the median that a cell of a blank picture keeps
_MAX_OTHER_CELLS = 0.005  # share of cells of a blank picture that may differ
_CORNER = 8  # cells to a side where a logo may be
_MAX_REPEATED_CELL, _MAX_REPEATED_MEAN = 6.0, 1.0  # grey levels between frames of a still picture, after compression
_SHOT_CHANGE = 0.1
_BINS = 8  # to a colour
_FLAT_VARIANCE = 4.0  # of noise: without more than this, two pictures have no layout to compare

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Pictures:
    """What is kept of T frames."""

    cells: Floats  # [T, 32, 32, 3] mean colours
    colours: Floats  # [T, 512] histogram of the cells, adding up to 1
    layout: Floats  # [T, 256] of brightness, without its mean

    def __getitem__(self, part: slice) -> _Pictures:
        return _Pictures(self.cells[part], self.colours[part], self.layout[part])


class FrameContentDetector:
    """For the frames of one video in presentation order, in chunks of any size; the result does not depend on it."""

    def __init__(self) -> None:
        self._last: _Pictures | None = None
        self._last_distinct: Floats | None = None

    def add(self, frames: NDArray[np.uint8]) -> FrameContent:
        """The content of ``frames`` [T>=1, H, W, 3]. The first frame of a video starts a shot."""
        pictures = _describe(frames)
        starts_shot = np.ones(len(frames), np.bool_)
        starts_shot[1:] = _are_unlike(pictures[:-1], pictures[1:])
        if self._last is not None:
            starts_shot[:1] = _are_unlike(self._last, pictures[:1])
        self._last = pictures[-1:]
        is_repeated = np.array([self._is_repeated(cells) for cells in pictures.cells], np.bool_)
        return FrameContent(_are_blank(pictures.cells), is_repeated, starts_shot)

    def _is_repeated(self, cells: Floats) -> bool:
        """Compared with the last frame that was no repetition, so that slow changes add up."""
        if self._last_distinct is not None:
            change = np.abs(cells - self._last_distinct)
            if change.max() < _MAX_REPEATED_CELL and change.mean() < _MAX_REPEATED_MEAN:
                return True
        self._last_distinct = cells
        return False


def _describe(frames: NDArray[np.uint8]) -> _Pictures:
    cells = _cell_means(frames)
    grey = cells.mean(axis=3).reshape(-1, _CELLS // 2, 2, _CELLS // 2, 2).mean(axis=(2, 4))
    layout = grey.reshape(len(grey), -1)
    return _Pictures(cells, _histograms(cells), layout - layout.mean(axis=1, keepdims=True))


def _cell_means(frames: NDArray[np.uint8]) -> Floats:
    """[T, 32, 32, 3], of every second row; the edges that do not fill a cell are left out."""
    _, height, width, _ = frames.shape
    if min(height, width) < _CELLS:  # smaller than any model's input, but allowed
        frames = frames.repeat(-(-_CELLS // height), axis=1).repeat(-(-_CELLS // width), axis=2)
        _, height, width, _ = frames.shape
    tall, wide = height // _CELLS, width // _CELLS
    top, left = (height - tall * _CELLS) // 2, (width - wide * _CELLS) // 2
    rows = range(top, top + tall, 2)
    summed = np.zeros((len(frames), _CELLS, width, 3), np.uint16)  # frames have far fewer than 32 * 2 * 257 rows
    for row in rows:
        summed += frames[:, row : row + tall * (_CELLS - 1) + 1 : tall]
    sums = np.zeros((len(frames), _CELLS, _CELLS, 3), np.uint32)
    for column in range(left, left + wide):
        sums += summed[:, :, column : column + wide * (_CELLS - 1) + 1 : wide]
    means: Floats = sums.astype(np.float32) / np.float32(wide * len(rows))
    return means


def _histograms(cells: Floats) -> Floats:
    """[T, 512], smoothed so that a slight change of light moves little."""
    bins = (cells * np.float32(_BINS / 256)).astype(np.int64)
    codes = (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]
    codes += np.arange(len(cells))[:, None, None] * _BINS**3
    counts = np.bincount(codes.ravel(), minlength=len(cells) * _BINS**3).astype(np.float32)
    smooth = counts.reshape(len(cells), _BINS, _BINS, _BINS) / np.float32(_CELLS**2)
    for axis in (1, 2, 3):
        padded = np.concatenate([smooth.take([0], axis), smooth, smooth.take([-1], axis)], axis)
        before, after = padded.take(range(_BINS), axis), padded.take(range(2, _BINS + 2), axis)
        smooth = (before + 2 * smooth + after) / 4
    return smooth.reshape(len(cells), -1)


def _are_unlike(first: _Pictures, second: _Pictures) -> NDArray[np.bool_]:
    """[T]: both the colours and the layout differ. Motion alone keeps the colours, a change of light the layout."""
    colours = 1 - np.minimum(first.colours, second.colours).sum(axis=1)
    variances = [(layout**2).mean(axis=1) + _FLAT_VARIANCE for layout in (first.layout, second.layout)]
    correlation = (first.layout * second.layout).mean(axis=1) / np.sqrt(variances[0] * variances[1])
    unlike: NDArray[np.bool_] = colours * (1 - correlation) > _SHOT_CHANGE
    return unlike


def _are_blank(cells: Floats) -> NDArray[np.bool_]:
    """[T]: nearly all cells have one colour; in the corners there may be a logo or a clock."""
    samples = np.sort(cells[:, 2::4, 2::4].reshape(len(cells), -1, 3), axis=1)
    median = samples[:, samples.shape[1] // 2, None, None]
    differs = (np.abs(cells - median) > _BLANK_RANGE).any(axis=3)
    for rows in (slice(_CORNER), slice(-_CORNER, None)):
        for columns in (slice(_CORNER), slice(-_CORNER, None)):
            differs[:, rows, columns] = False
    blank: NDArray[np.bool_] = differs.mean(axis=(1, 2)) <= _MAX_OTHER_CELLS
    return blank
