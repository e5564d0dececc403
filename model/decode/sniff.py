"""Detects a file's container from its first bytes; file names and content types are not trusted.

Only the containers listed here are opened, each with its own demuxer. Playlists and scripts that make FFmpeg open other
files or addresses (HLS, concat, DASH, SDP) are not among them.
"""

from __future__ import annotations

HEAD_BYTES = 1024

CONTAINERS = "MP4/MOV, WebM/Matroska, AVI, MPEG-TS"

_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
_TS_PACKET = 188


def demuxer_for(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that starts with ``head``; None if the container is not supported.

    The first MP4 box must be smaller than 16 MiB or have a 64-bit size: its first byte is then zero, which rules out
    text files.
    """
    if len(head) >= 8 and head[0] == 0 and head[4:8] in _MP4_FIRST_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    # M2TS has a four-byte clock before each packet
    if any(_is_transport_stream(head, start, _TS_PACKET + start) for start in (0, 4)):
        return "mpegts"
    return None


def _is_transport_stream(head: bytes, start: int, stride: int) -> bool:
    sync_bytes = head[start::stride]
    return len(sync_bytes) >= 3 and all(byte == 0x47 for byte in sync_bytes)
