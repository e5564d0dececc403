"""From the stored picture to the one that a player shows: display matrix and sample aspect ratio.

The display matrix (ISO/IEC 14496-12, 8.3.2) rotates by multiples of 90 degrees and mirrors. Other angles, scales and
translations are ignored, as players do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_MATRIX = struct.Struct("=9i")
# FFmpeg's filters for the eight orientations, by (a, b, c, d) of the matrix: the stored point (x, y) is shown at
# (ax + cy, bx + dy), y downwards
_FILTERS: dict[tuple[int, int, int, int], tuple[str, ...]] = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): ("hflip",),
    (1, 0, 0, -1): ("vflip",),
    (-1, 0, 0, -1): ("hflip", "vflip"),
    (0, 1, -1, 0): ("transpose=clock",),
    (0, -1, 1, 0): ("transpose=cclock",),
    (0, 1, 1, 0): ("transpose=cclock_flip",),
    (0, -1, -1, 0): ("transpose=clock_flip",),
}
_MAX_PIXEL_ASPECT = 16  # wider or narrower pixels are a writer's mistake


@dataclass(frozen=True)
class Orientation:
    filters: tuple[str, ...] = ()  # FFmpeg's, in order

    @property
    def is_sideways(self) -> bool:
        return any(name.startswith("transpose") for name in self.filters)


def orientation_of(frame: Any) -> Orientation:
    """The orientation of a decoded PyAV frame."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    values = bytes(data)
    if len(values) != _MATRIX.size:
        return Orientation()
    a, b, _, c, d, *_ = _MATRIX.unpack(values)
    return Orientation(_FILTERS.get((_sign(a, b, c, d), _sign(b, a, c, d), _sign(c, a, b, d), _sign(d, a, b, c)), ()))


def _sign(value: int, *others: int) -> int:
    # -1, 0 or 1: rounding leaves small numbers in the place of zeros
    if 4 * abs(value) < max(map(abs, others)):
        return 0
    return (value > 0) - (value < 0)


def display_size(width: int, height: int, pixel_aspect: Fraction | None, orientation: Orientation) -> tuple[int, int]:
    """(width, height) of the shown picture: the width is stretched by ``pixel_aspect``, then the picture is turned."""
    if pixel_aspect and Fraction(1, _MAX_PIXEL_ASPECT) <= pixel_aspect <= _MAX_PIXEL_ASPECT:
        width = max(1, round(width * pixel_aspect))
    return (height, width) if orientation.is_sideways else (width, height)
