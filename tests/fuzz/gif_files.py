"""GIF files made block by block: each frame with its place, palette, transparency, disposal and order of rows."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEEP, CLEAR, RESTORE = 1, 2, 3  # disposal


@dataclass(frozen=True, eq=False)
class GifFrame:
    indices: NDArray[np.uint8]  # [H, W] into the palette
    left: int = 0
    top: int = 0
    delay: int = 10  # hundredths of a second
    disposal: int = KEEP
    transparent: int | None = None
    palette: NDArray[np.uint8] | None = None  # [2^n, 3] of its own, else the file's
    is_interlaced: bool = False


def gif_file(
    width: int,
    height: int,
    palette: NDArray[np.uint8],
    frames: Sequence[GifFrame],
    *,
    loops: int | None = 0,
    background: int = 0,
    comment: bytes = b"",
) -> bytes:
    """``palette`` [2^n, 3] of the file. ``loops``: None writes no loop extension."""
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80 | _bits(palette) - 1, background, 0)]
    parts.append(palette.tobytes())
    if loops is not None:
        parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loops) + b"\0")
    if comment:
        parts.append(b"\x21\xfe" + _sub_blocks(comment))
    parts += [frame_blocks(frame, palette) for frame in frames]
    return b"".join(parts) + b";"


def frame_blocks(frame: GifFrame, palette: NDArray[np.uint8]) -> bytes:
    flags = frame.disposal << 2 | (frame.transparent is not None)
    control = b"\x21\xf9\x04" + struct.pack("<BHBB", flags, frame.delay, frame.transparent or 0, 0)
    height, width = frame.indices.shape
    own = frame.palette
    flags = (0x80 | _bits(own) - 1 if own is not None else 0) | (0x40 if frame.is_interlaced else 0)
    descriptor = b"," + struct.pack("<HHHHB", frame.left, frame.top, width, height, flags)
    rows = frame.indices
    if frame.is_interlaced:
        rows = np.concatenate([rows[0::8], rows[4::8], rows[2::4], rows[1::2]])
    bits = max(2, _bits(own if own is not None else palette))
    local = own.tobytes() if own is not None else b""
    return control + descriptor + local + bytes((bits,)) + _sub_blocks(_codes(rows.ravel().tolist(), bits))


def _bits(palette: NDArray[np.uint8]) -> int:
    return (len(palette) - 1).bit_length()


def _codes(indices: list[int], bits: int) -> bytes:
    """LZW that never compresses: the table is cleared before its codes would grow wider."""
    clear = 1 << bits
    codes = []
    for start in range(0, len(indices), clear - 2):
        codes += [clear, *indices[start : start + clear - 2]]
    codes.append(clear + 1)
    number = sum(code << (bits + 1) * place for place, code in enumerate(codes))
    return number.to_bytes(((bits + 1) * len(codes) + 7) // 8, "little")


def _sub_blocks(data: bytes) -> bytes:
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"
