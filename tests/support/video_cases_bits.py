"""Bit streams that no encoder here writes: H.264 with one field a picture, MPEG-4 packed by DivX."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from support.video_cases_files import HEIGHT, WIDTH, Clips
from support.videos import numbered_picture

_MACROBLOCK = 16
_RAW = b"\x0d\x00"  # macroblock of raw samples (type 25), then zeros to the end of the byte


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def fixed(self, value: int, width: int) -> _Bits:
        self.text += f"{value:0{width}b}"
        return self

    def golomb(self, *values: int) -> _Bits:
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code
        return self

    def payload(self) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def _unit(kind: int, payload: bytes) -> bytes:
    """With its start code; a byte 3 keeps start codes out of the payload (H.264, 7.4.1)."""
    return b"\0\0\0\x01" + bytes([kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", payload)


def _parameter_sets() -> bytes:
    sps = _Bits().fixed(77, 8).fixed(0, 8).fixed(30, 8)  # Main profile, level 3
    sps.golomb(0, 0, 0, 4, 1).fixed(0, 1)  # 4 bits of frame number, 8 of order, 1 reference
    sps.golomb(WIDTH // _MACROBLOCK - 1, HEIGHT // _MACROBLOCK // 2 - 1)
    sps.fixed(0, 1).fixed(0, 1).fixed(1, 1).fixed(0, 2)  # fields allowed, whole pictures of one kind
    pps = _Bits().golomb(0, 0).fixed(0, 2).golomb(0, 0, 0).fixed(0, 3).golomb(0, 0, 0).fixed(0b100, 3)
    return _unit(0x67, sps.payload()) + _unit(0x68, pps.payload())


def _slice(planes: list[NDArray[np.uint8]], *, frame: int, is_key: bool, field: int | None, gop: int) -> bytes:
    """A picture of raw samples. ``field`` 0 is the upper one, 1 the lower one, None a whole frame."""
    number = frame % gop
    is_first = is_key and field != 1  # the second field of a key frame is none itself
    bits = _Bits().golomb(0, 7, 0).fixed(number, 4).fixed(int(field is not None), 1)
    if field is not None:
        bits.fixed(field, 1)
    if is_first:
        bits.golomb(frame // gop % 2)
    bits.fixed(2 * number + (field or 0), 8).fixed(0, 2 if is_first else 1).golomb(0, 1)
    bits.golomb(25)
    bits.text += "0" * (-len(bits.text) % 8)
    head = int(bits.text, 2).to_bytes(len(bits.text) // 8, "big")
    luma, *chroma = planes
    blocks = []
    for y in range(0, luma.shape[0], _MACROBLOCK):
        for x in range(0, luma.shape[1], _MACROBLOCK):
            half = np.s_[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8]
            parts = (luma[y : y + _MACROBLOCK, x : x + _MACROBLOCK], *(plane[half] for plane in chroma))
            blocks.append(b"".join(part.tobytes() for part in parts))
    return _unit(0x65 if is_first else 0x61, head + _RAW.join(blocks) + b"\x80")


def write_fields(
    clips: Clips, suffix: str, *, num_frames: int, together: bool, whole: bool = False, gop: int = 12, fps: int = 25
) -> Path:
    """H.264 coded by fields (PAFF), as AVCHD cameras and interlaced television do.

    ``together``: both fields of a frame in one packet, else one packet a field. ``whole``: every third frame is coded
    whole.
    """
    coded: list[list[bytes]] = []
    for k in range(num_frames):
        planes = _planes(numbered_picture(k, WIDTH, HEIGHT))
        is_key = k % gop == 0
        if whole and k % 3 == 2:
            units = [_slice(planes, frame=k, is_key=is_key, field=None, gop=gop)]
        else:
            units = [_slice([p[f::2] for p in planes], frame=k, is_key=is_key, field=f, gop=gop) for f in (0, 1)]
        coded.append([_unit(0x09, b"\x10") + (_parameter_sets() if is_key else b"") + units[0], *units[1:]])
    raw, path = clips.path(".h264"), clips.path(suffix)
    raw.write_bytes(b"".join(b"".join(units) for units in coded))
    with av.open(str(raw), format="h264") as reader, av.open(str(path), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for k, units in enumerate(coded):
            parts = [b"".join(units)] if together else units
            for number, part in enumerate(parts):
                packet: Any = av.Packet(part)
                packet.time_base = Fraction(1, 2 * fps)
                packet.pts = packet.dts = 2 * k + number
                packet.duration = 2 // len(parts)
                packet.is_keyframe = k % gop == 0 and number == 0
                packet.stream = stream
                writer.mux(packet)
    return path


def _planes(picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
    sizes = ((HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (HEIGHT // 2, WIDTH // 2))
    ends = np.cumsum([height * width for height, width in sizes])
    flat = frame.to_ndarray().astype(np.uint8).reshape(-1)
    return [flat[end - h * w : end].reshape(h, w) for end, (h, w) in zip(ends, sizes, strict=True)]


def write_packed(clips: Clips, *, seconds: float = 3.0, fps: int = 25, gop: int = 30) -> Path:
    """DivX's packed bit stream: a packet holds a P and the B picture shown before it, the next one no picture."""
    source = clips.clip(".avi", codec="mpeg4", seconds=seconds, fps=fps, gop=gop, b_frames=1)
    with av.open(str(source)) as reader:
        packets = [bytes(packet) for packet in reader.demux(video=0) if packet.size]
    divx = b"\0\0\x01\xb2DivX503b1393p"
    packets = [re.sub(rb"\0\0\x01\xb2Lavc[\d.]+", divx, packet) for packet in packets]
    is_b = [packet[packet.index(b"\0\0\x01\xb6") + 4] >> 6 == 2 for packet in packets]
    empty = b"\0\0\x01\xb6" + int("010" + "1" + "00000" + "1" + "0" + "01111", 2).to_bytes(2, "big")
    merged: dict[int, bytes] = {}
    for k, packet in enumerate(packets):
        if is_b[k]:
            merged[k - 1], merged[k] = packets[k - 1] + packet, empty
        else:
            merged[k] = packet
    assert any(is_b)
    path = clips.remuxed(source, ".avi", change=lambda k, _: merged[k])
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"DX50"))
    return path
