"""Animated WebP files made chunk by chunk: each frame with its place, blending and disposal."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class WebpFrame:
    pixels: NDArray[np.uint8]  # [H, W, 4] RGBA
    left: int = 0  # even, as the format can say no other
    top: int = 0
    duration_ms: int = 100
    blends: bool = True  # over what is there; else it replaces it, transparent parts included
    is_cleared: bool = False  # becomes transparent after its time


def webp_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def webp_file(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def animated_webp(
    width: int, height: int, frames: Sequence[WebpFrame], *, background: int = 0, extra: bytes = b""
) -> bytes:
    """``extra`` chunks are the last."""
    return webp_file(
        canvas_chunk(width, height),
        webp_chunk(b"ANIM", struct.pack("<IH", background, 0)),
        *(frame_chunk(frame) for frame in frames),
        extra,
    )


def canvas_chunk(width: int, height: int) -> bytes:
    """Of an animation with transparency."""
    return webp_chunk(b"VP8X", bytes((0x12, 0, 0, 0)) + _u24(width - 1) + _u24(height - 1))


def frame_chunk(frame: WebpFrame, *, claimed: tuple[int, int] | None = None) -> bytes:
    height, width = frame.pixels.shape[:2]
    flags = (0 if frame.blends else 2) | (1 if frame.is_cleared else 0)
    numbers = (
        frame.left // 2,
        frame.top // 2,
        (claimed or (width, height))[0] - 1,
        (claimed or (width, height))[1] - 1,
    )
    fields = b"".join(map(_u24, numbers)) + _u24(frame.duration_ms) + bytes((flags,))
    return webp_chunk(b"ANMF", fields + picture_chunk(frame.pixels))


def picture_chunk(pixels: NDArray[np.uint8]) -> bytes:
    """VP8L, without loss, also of the colour under transparent pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True)
    data = file.getvalue()
    place = data.index(b"VP8L")
    return data[place : place + 8 + struct.unpack_from("<I", data, place + 4)[0] + data[place + 4] % 2]


def _u24(number: int) -> bytes:
    return number.to_bytes(3, "little")
