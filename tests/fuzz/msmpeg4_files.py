"""MS MPEG-4 version 1, which nothing encodes any more: black and white macroblocks, each frame a key frame.

Frame k of 48x48 shows the number k, as `numbered_picture` does.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

SIDE, _CELLS = 48, 3  # pixels; macroblocks on a side
_BLACK, _WHITE, _START = 20, 235, 128

# Number of bits of a difference, as in MPEG-4 part 2 with inverted bits
_SIZES = {0: "100", 7: "111110", 8: "1111110"}


def write_msmpeg4v1(path: Path, *, num_frames: int = 6, rate: int = 25) -> Path:
    """In AVI."""
    with av.open(str(path), "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(num_frames):
            packet = av.Packet(_frame(number))
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"MPG4"))
    return path


def _frame(number: int) -> bytes:
    # start code, number of the frame, an I picture, quantizer 8, one slice of all rows
    before = _START
    bits = f"{0x100:032b}" + f"{number % 32:05b}" + "00" + f"{8:05b}" + f"{_CELLS:05b}"
    for cell in range(_CELLS * _CELLS):
        before = _START if cell % _CELLS == 0 else before
        level = _WHITE if number >> cell & 1 else _BLACK
        bits += "1" + "0011"  # no block has more than its constant part
        for _ in range(4):
            bits += _difference(level - before)  # to the block before it
            before = level
        bits += "00" + "00"  # no colour
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    return _SIZES[size] + (f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else "")
