"""Changes to the elements of a Matroska or WebM file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

TRACK_ENTRY, SIMPLE_BLOCK, SEEK_HEAD, CUES, TAGS = "ae", "a3", "114d9b74", "1c53bb6b", "1254c367"
DEFAULT_DURATION = "23e383"  # of a frame, in ns
_NESTED = {"18538067", "1654ae6b", TRACK_ENTRY, "1f43b675", "a0"}  # Segment, Tracks, an entry, Cluster, BlockGroup


def element(name: str, payload: bytes) -> bytes:
    """``name`` is the identifier in hexadecimal; the size takes eight bytes."""
    return bytes.fromhex(name) + (1 << 56 | len(payload)).to_bytes(8, "big") + payload


def changed(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """``change`` (name, payload) gives the new payload of each element, inner ones first, or None to drop it."""
    out, place = [], 0
    while place < len(data):
        width = 9 - data[place].bit_length()
        name = data[place : place + width].hex()
        place += width
        width = 9 - data[place].bit_length()
        size = int.from_bytes(data[place : place + width], "big") & (1 << 7 * width) - 1
        place += width
        end = len(data) if size == (1 << 7 * width) - 1 else min(len(data), place + size)
        payload = changed(data[place:end], change) if name in _NESTED else data[place:end]
        new = change(name, payload)
        if new is not None:
            out.append(element(name, new))
        place = end
    return b"".join(out)


def encrypted(source: Path, target: Path, *, with_key_id: bool = True) -> Path:
    """Each block has the header of WebM encryption (a signal byte, a counter of eight bytes) and unreadable bytes."""
    encryption = element("47e1", b"\5") + (element("47e2", bytes(range(16))) if with_key_id else b"")  # AES
    encoding = element("5031", b"\0") + element("5032", b"\1") + element("5033", b"\1") + element("5035", encryption)
    noise = random.Random(1)

    def change(name: str, payload: bytes) -> bytes | None:
        if name in (SEEK_HEAD, CUES):  # their positions are no longer right
            return None
        if name == TRACK_ENTRY:
            return payload + element("6d80", element("6240", encoding))
        if name == SIMPLE_BLOCK:
            hidden = bytes(a ^ b for a, b in zip(payload[4:], noise.randbytes(len(payload) - 4), strict=True))
            return payload[:4] + b"\1" + bytes(8) + hidden
        return payload

    target.write_bytes(changed(source.read_bytes(), change))
    return target


def without_duration(source: Path, target: Path) -> Path:
    """No duration in the header and no table of key frames: a recording that was streamed."""

    def change(name: str, payload: bytes) -> bytes | None:
        if name in (SEEK_HEAD, CUES, TAGS):
            return None
        if name == "1549a966":  # Info, in which Duration (44 89) takes 2 + 1 + 8 bytes
            place = payload.index(b"\x44\x89\x88")
            return payload[:place] + payload[place + 11 :]
        return payload

    target.write_bytes(changed(source.read_bytes(), change))
    return target


def with_claimed_rate(source: Path, target: Path, fps: int) -> Path:
    """The header claims ``fps`` frames per second: many recorders write that of their clock, 1000."""

    def change(name: str, payload: bytes) -> bytes | None:
        if name in (SEEK_HEAD, CUES):
            return None
        return (1_000_000_000 // fps).to_bytes(8, "big") if name == DEFAULT_DURATION else payload

    target.write_bytes(changed(source.read_bytes(), change))
    return target
