"""Changes to the packets of an MPEG transport stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 188
VIDEO_PID = 256  # what FFmpeg gives to the first stream
_MAP_PID = 4096  # the table of the streams


def pid_of(packet: bytes) -> int:
    return (packet[1] & 31) << 8 | packet[2]


def starts_picture(packet: bytes) -> bool:
    return pid_of(packet) == VIDEO_PID and bool(packet[1] & 0x40)


def packets(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    for start in range(0, len(data), SIZE):
        yield data[start : start + SIZE]


def only(source: Path, target: Path, keep: Callable[[int, bytes], bool]) -> Path:
    """The packets that ``keep`` (their number, their bytes) takes."""
    target.write_bytes(b"".join(packet for k, packet in enumerate(packets(source)) if keep(k, packet)))
    return target


def restrided(source: Path, target: Path, size: int) -> Path:
    """192: M2TS of cameras and Blu-ray, 4 bytes of clock before a packet. 204: DVB, 16 bytes of parity after it."""
    before, after = ((k * 300).to_bytes(4, "big") for k in range(1 << 30)), bytes(range(100, 116))
    if size == 192:
        target.write_bytes(b"".join(next(before) + packet for packet in packets(source)))
    else:
        target.write_bytes(b"".join(packet + after for packet in packets(source)))
    return target


def scrambled(source: Path, target: Path, *, headers: bool, first_pid: int = VIDEO_PID) -> Path:
    """Streams from ``first_pid`` on are encrypted, and the header of each packet says so.

    ``headers``: those of the pictures are encrypted, too.
    """
    out: list[bytes] = []
    for packet in packets(source):
        changed = bytearray(packet)
        start = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        if first_pid <= pid_of(packet) < _MAP_PID and start < SIZE:
            changed[3] |= 0x80
            if headers or not packet[1] & 0x40:
                noise = random.Random(len(out)).randbytes(SIZE - start)
                changed[start:] = bytes(a ^ b for a, b in zip(packet[start:], noise, strict=True))
        out.append(bytes(changed))
    target.write_bytes(b"".join(out))
    return target


def without_pictures(source: Path, target: Path, first: int, last: int) -> Path:
    """The data of the pictures [first, last), in stored order, is overwritten; their time stamps are not."""
    out: list[bytes] = []
    picture = -1
    for read in packets(source):
        packet = read
        picture += starts_picture(packet)
        payload = 4 + (1 + packet[4] if packet[3] & 0x20 else 0) + 40 * starts_picture(packet)
        if pid_of(packet) == VIDEO_PID and first <= picture < last and payload < SIZE:
            packet = packet[:payload] + b"\xff" * (SIZE - payload)
        out.append(packet)
    target.write_bytes(b"".join(out))
    return target
