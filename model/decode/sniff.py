"""What kind of container a file is, by its first bytes: the name and the sender's content type prove nothing.

Only the containers of this list are ever opened, each with its own demuxer. Playlists and scripts that make FFmpeg
open other files or addresses (HLS, concat, DASH, SDP) have no entry, whatever they are called.
"""

from __future__ import annotations

HEAD_BYTES = 1024
"""How much of a file ``demuxer_for`` wants to see."""

CONTAINERS = "MP4/MOV, WebM/Matroska, AVI, MPEG-TS"
"""For messages to people."""

_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
_TS_PACKET = 188


def demuxer_for(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that starts with ``head``, or None if the file is not on the list.

    An MP4 box must be smaller than 16 MiB or carry a 64-bit size: its first byte is then zero, and no text can be
    taken for one.
    """
    if len(head) >= 8 and head[0] == 0 and head[4:8] in _MP4_FIRST_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    # M2TS puts a four-byte clock before each packet
    if any(_is_transport_stream(head, start, _TS_PACKET + start) for start in (0, 4)):
        return "mpegts"
    return None


def _is_transport_stream(head: bytes, start: int, stride: int) -> bool:
    marks = head[start::stride]
    return len(marks) >= 3 and all(mark == 0x47 for mark in marks)
