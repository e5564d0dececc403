"""Forged video headers: picture sizes, durations, and references to other files and addresses."""

from __future__ import annotations

import struct
from pathlib import Path


def write_claimed_size(source: Path, target: Path, *, width: int, height: int, in_container: bool = True) -> Path:
    """Copy the H.264 mp4 ``source``, whose moov box must be at its end, with a stream header of another size.

    With ``in_container=False`` the fields of the container have the true size.
    """
    data = source.read_bytes()
    moov = find_box(data, 0, len(data), b"moov")
    sps = _sps(width, height)
    pps = bytes([0x68, 0xEE, 0x3C, 0x80])
    avcc = struct.pack(">BBBBBBH", 1, 100, 0, 62, 0xFF, 0xE1, len(sps)) + sps + struct.pack(">BH", 1, len(pps)) + pps
    avcc += bytes([0xFD, 0xF8, 0xF8, 0])  # chroma 4:2:0, 8 bits, no SPS extension
    new = _rewrite(data[moov[0] : moov[1]], [b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1", b"avcC"], avcc)
    if in_container:
        place = new.index(b"avc1") + 4 + 24
        new = new[:place] + struct.pack(">HH", width, height) + new[place + 4 :]
    target.write_bytes(data[: moov[0]] + new + data[moov[1] :])
    return target


# Bytes between a box's header and its children.
_LEADING = {b"stsd": 8, b"avc1": 78}


def find_box(data: bytes, start: int, end: int, kind: bytes) -> tuple[int, int]:
    while start + 8 <= end:
        size = struct.unpack_from(">I", data, start)[0]
        if data[start + 4 : start + 8] == kind:
            return start, start + size
        start += size
    raise ValueError(f"no {kind!r} box")


def _rewrite(box: bytes, path: list[bytes], payload: bytes) -> bytes:
    """``box`` with the payload of its descendant at ``path`` replaced and the sizes of its ancestors corrected."""
    if not path:
        return struct.pack(">I", len(payload) + 8) + box[4:8] + payload
    start, end = find_box(box, 8 + _LEADING.get(box[4:8], 0), len(box), path[0])
    new = box[:start] + _rewrite(box[start:end], path[1:], payload) + box[end:]
    return struct.pack(">I", len(new)) + new[4:]


def _sps(width: int, height: int) -> bytes:
    """An H.264 sequence parameter set (High profile, level 6.2, frames only) of a size in whole macroblocks."""
    bits = ""

    def unsigned(value: int) -> str:
        code = bin(value + 1)[2:]
        return "0" * (len(code) - 1) + code

    bits += unsigned(0) + unsigned(1) + unsigned(0) + unsigned(0) + "00"  # id, 4:2:0, 8 bits, 8 bits, no matrices
    bits += unsigned(0) + unsigned(2) + unsigned(1) + "0"  # frame number bits, order by decoding, 1 reference, no gaps
    bits += unsigned(width // 16 - 1) + unsigned(height // 16 - 1)
    bits += "1" + "1" + "0" + "0"  # frames only, 8x8 inference, no cropping, no VUI
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    raw = bytes([0x67, 100, 0, 62]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    out = bytearray()
    zeros = 0
    for byte in raw:  # emulation prevention (H.264, 7.4.1)
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def claim_duration(source: Path, target: Path, *, seconds: float) -> Path:
    """Copy a Matroska or WebM file with a header that claims ``seconds``; the frames are unchanged."""
    data = source.read_bytes().replace(b"DURATION", b"XXXXXXXX")  # the tag with the duration of the stream
    place = data.index(bytes([0x44, 0x89, 0x88])) + 3  # Duration, a double, in milliseconds
    target.write_bytes(data[:place] + struct.pack(">d", seconds * 1000) + data[place + 8 :])
    return target


def playlist(target_url: str) -> bytes:
    lines = ["#EXTM3U", "#EXT-X-MEDIA-SEQUENCE:0", "#EXTINF:10.0,", target_url, "#EXT-X-ENDLIST", ""]
    return "\n".join(lines).encode()
