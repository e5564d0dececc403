"""VC-1, advanced profile, for which there is no free encoder: grey macroblocks, each frame a key frame.

SMPTE 421M. Frame k of 48x48 shows the number k, as `numbered_picture` does, in two greys.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

SIDE, _CELLS = 48, 3  # pixels; macroblocks on a side

_LEVEL = 9  # of the constant part of a block: black minus, white plus; 3 steps of grey each at the coarsest quantizer
_DIFFERENCES = {0: "1", _LEVEL: "0000010", 2 * _LEVEL: "001101100"}  # followed by a sign, if not 0


def write_vc1(path: Path, *, num_frames: int = 6, rate: int = 25) -> Path:
    """In MPEG-TS if the path ends like that, else in ASF."""
    muxer = "mpegts" if path.suffix == ".ts" else "asf"
    raw = path.with_name(path.name + ".raw")
    raw.write_bytes(b"".join(_sequence() + _entry_point() + _frame(number) for number in range(num_frames)))
    with av.open(str(raw), format="vc1") as source, av.open(str(path), "w", format=muxer) as target:
        stream: Any = target.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            target.mux(packet)
    return path


def _sequence() -> bytes:
    size = f"{SIDE // 2 - 1:012b}"
    # advanced profile, level 1, 4:2:0, no hints for post-processing; size; progressive, no optional parts
    return _unit(0x0F, "11" + "001" + "01" + "000" + "00000" + "0" + size + size + "0000" + "1" + "0" + "0" + "0")


def _entry_point() -> bytes:
    # a closed entry point without options, quantizer uniform (3)
    return _unit(0x0E, "01" + "0" * 7 + "00" + "11" + "000")


def _frame(number: int) -> bytes:
    # an I picture at quantizer 31; prediction of the other coefficients is a flag of each macroblock; first tables
    header = "110" + "0" + "11111" + "00000" + "0" + "0" + "0"
    levels: dict[tuple[int, int], int] = {}
    body = ""
    for cell in range(_CELLS * _CELLS):
        row, column = divmod(cell, _CELLS)
        level = _LEVEL if number >> cell & 1 else -_LEVEL
        body += "1" + "0"  # no block has more than its constant part, nor is that part predicted otherwise
        for block in range(4):
            place = (2 * row + block // 2, 2 * column + block % 2)
            body += _difference(level - _predicted(levels, *place))
            levels[place] = level
        body += "00" + "00"  # no colour
    return _unit(0x0D, header + body)


def _predicted(levels: dict[tuple[int, int], int], row: int, column: int) -> int:
    """From the block on the left or the one above, the one in whose direction less changes."""
    above, left = levels.get((row - 1, column)), levels.get((row, column - 1))
    corner = levels.get((row - 1, column - 1), 0)
    if left is not None and (above is None or abs(above - corner) <= abs(corner - left)):
        return left
    return 0 if above is None else above


def _difference(value: int) -> str:
    return _DIFFERENCES[abs(value)] + ("" if value == 0 else "1" if value < 0 else "0")


def _unit(kind: int, bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    out, zeros = bytearray(), 0
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\x01" + bytes((kind,)) + bytes(out)
