"""Detects a file's container from its bytes; file names and content types are not trusted.

Only the containers of `formats` are opened, each with its own demuxer. Playlists and scripts that make FFmpeg open
other files or addresses (HLS, concat, DASH, SDP) are not among them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import BinaryIO

from vidlex.model.decode.containers import formats

HEAD_BYTES = 8192

CONTAINERS = ", ".join(formats.CONTAINERS.values())

_FIRST_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"))
_LATER_BOXES = _FIRST_BOXES | {b"moof", b"uuid", b"udta", b"meta", b"sidx", b"PICT"}
# A picture in HEIF (HEIC, AVIF) may consist of tiles, which the demuxer gives as videos of their own
_STILL_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif"))
_SIGNATURES = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"FLV\x01", "flv"),
    (b"OggS\0", "ogg"),
    (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "asf"),
)
_RIFF_KINDS = {b"AVI ": "avi", b"WEBP": formats.WEBP, b"CDXA": "mpeg"}  # the last: copied from a Video CD
_TS_STRIDES = (188, 192, 204)  # bytes from packet to packet: plain, with a clock (M2TS), with parity bytes
_TS_PACKETS = 5
_MAX_OFFSET = 4096  # of the first whole packet in a recording that was not cut at one


def demuxer_of(file: BinaryIO) -> str | None:
    """FFmpeg's demuxer for the file, `formats.WEBP`, or None if the container is not supported. Reads up to 16 KiB."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    for signature, demuxer in _SIGNATURES:
        if head.startswith(signature):
            return demuxer
    if head.startswith(b"RIFF"):
        return _RIFF_KINDS.get(head[8:12])
    checks: dict[str, Callable[[], bool]] = {
        "mov": lambda: _is_mp4(head, file, num_bytes),
        "dv": lambda: _is_dv(head),
        "mpegvideo": lambda: _is_mpeg_video(head),
        "mpeg": lambda: _is_program_stream(head),
        "mpegts": lambda: _is_transport_stream(head, num_bytes),
    }
    return next((demuxer for demuxer, check in checks.items() if check()), None)


def _is_mp4(head: bytes, file: BinaryIO, num_bytes: int) -> bool:
    """A first box of 16 MiB or more has a first byte that text could have, too: another box must follow it."""
    if len(head) < 8:
        return False
    size, kind = struct.unpack_from(">I4s", head)
    if kind not in _FIRST_BOXES:
        return False
    if kind == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return False
    if head[0] == 0:
        return True
    if size + 8 > num_bytes:
        return False
    file.seek(size)
    next_size, next_kind = struct.unpack(">I4s", file.read(8))
    return next_kind in _LATER_BOXES and (next_size in (0, 1) or next_size >= 8)


def _is_dv(head: bytes) -> bool:
    """Raw DV: blocks of 80 bytes; the kind of each is in three bits, the header's is 0, a subcode's 1."""
    kinds = [head[80 * block] >> 5 for block in range(6)] if len(head) >= 480 else []
    return kinds == [0, 1, 1, 2, 2, 2] and head[1] >> 4 == 0 and head[2] == 0 and head[3] & 0x7F == 0x3F


def _is_mpeg_video(head: bytes) -> bool:
    """A sequence header of MPEG-1 or MPEG-2 with a size, an aspect ratio, a frame rate and its marker bit."""
    if not head.startswith(b"\0\0\x01\xb3") or len(head) < 12:
        return False
    width, height = head[4] << 4 | head[5] >> 4, (head[5] & 15) << 8 | head[6]
    return bool(width and height and head[7] >> 4 and 1 <= head[7] & 15 <= 8 and head[10] & 0x20)


def _is_program_stream(head: bytes) -> bool:
    place = head.find(b"\0\0\x01\xba")
    while 0 <= place <= _MAX_OFFSET:
        pack = head[place : place + 14]
        length = 0
        if len(pack) == 14 and pack[4] >> 6 == 1:  # MPEG-2, with up to 7 stuffing bytes
            length = 14 + (pack[13] & 7)
        elif len(pack) == 14 and pack[4] >> 4 == 2:  # MPEG-1
            length = 12
        following = head[place + length : place + length + 4]
        if length and following[:3] == b"\0\0\x01" and following[3:] >= b"\xba":
            return True
        place = head.find(b"\0\0\x01\xba", place + 1)
    return False


def _is_transport_stream(head: bytes, num_bytes: int) -> bool:
    for stride in _TS_STRIDES:
        needed = max(3, min(_TS_PACKETS, num_bytes // stride))  # a very short file has fewer
        last_start = min(_MAX_OFFSET, len(head) - stride * (needed - 1) - 4)
        place = head.find(b"\x47")
        while 0 <= place <= last_start:
            headers = [head[place + i * stride : place + i * stride + 4] for i in range(needed)]
            if _are_packet_headers(headers):
                return True
            place = head.find(b"\x47", place + 1)
    return False


def _are_packet_headers(headers: list[bytes]) -> bool:
    """Each says that it has a payload or an adaptation field, and some byte is a control character, unlike text."""
    if not all(header[0] == 0x47 and header[3] & 0x30 for header in headers):
        return False
    return any(byte < 9 or 14 <= byte < 32 for header in headers for byte in header)
