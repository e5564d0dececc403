"""Changes to the boxes of an MP4 or MOV file. Those that change the size of ``moov`` need it behind the pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Edit = tuple[int, int]
"""(duration, start in the media) of what is shown, in ms; a start of -1 shows nothing for that long."""

IDENTITY = (1, 0, 0, 1)
ORIENTATIONS = {
    "identity": IDENTITY,
    "clockwise": (0, 1, -1, 0),
    "half_turn": (-1, 0, 0, -1),
    "counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside_down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "antitransposed": (0, -1, -1, 0),
}
"""a, b, c, d of the matrix: the stored point x, y is shown at a x + c y, b x + d y."""

_LEADING = {b"stsd": 8, b"avc1": 78, b"meta": 4}
_BEFORE_MATRIX = {b"tkhd": 40, b"mvhd": 36}  # bytes after the box's header, in version 0


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, end) of each box, its header of 8 bytes included."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size = struct.unpack_from(">I", data, start)[0] or end - start
        yield data[start + 4 : start + 8], start, start + size
        start += size


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload) + 8) + kind + payload


def changed(data: bytes, path: Sequence[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """``data`` (a row of boxes) with ``change`` applied to the payload of the first box at ``path``."""
    for kind, start, end in boxes(data):
        if kind == path[0]:
            skip = start + 8 + (_LEADING.get(kind, 0) if len(path) > 1 else 0)
            inner = data[skip:end]
            new = change(inner) if len(path) == 1 else changed(inner, path[1:], change)
            return data[:start] + box(kind, data[start + 8 : skip] + new) + data[end:]
    raise ValueError(f"no {path[0]!r} box")


def payload(data: bytes, path: Sequence[bytes]) -> bytes:
    found = []

    def keep(inner: bytes) -> bytes:
        found.append(inner)
        return inner

    changed(data, path, keep)
    return found[0]


def with_edits(source: Path, target: Path, edits: Sequence[Edit], *, version: int = 0) -> Path:
    """The first track shows ``edits``. Times in the media count from its first shown frame."""
    data = source.read_bytes()
    movie_scale = struct.unpack_from(">I", payload(data, [b"moov", b"mvhd"]), 12)[0]
    media_scale = struct.unpack_from(">I", payload(data, [b"moov", b"trak", b"mdia", b"mdhd"]), 12)[0]
    try:
        old = payload(data, [b"moov", b"trak", b"edts", b"elst"])
        first = struct.unpack_from(">i", old, 12)[0]
    except ValueError:
        first = 0
    rows = b""
    for duration_ms, start_ms in edits:
        start = -1 if start_ms < 0 else first + round(start_ms * media_scale / 1000)
        duration = round(duration_ms * movie_scale / 1000)
        rows += struct.pack(">qq" if version else ">ii", duration, start) + struct.pack(">hh", 1, 0)
    elst = box(b"elst", struct.pack(">BxxxI", version, len(edits)) + rows)

    def change(track: bytes) -> bytes:
        kept = [track[start:end] for kind, start, end in boxes(track) if kind != b"edts"]
        return kept[0] + box(b"edts", elst) + b"".join(kept[1:])

    target.write_bytes(changed(data, [b"moov", b"trak"], change))
    return target


def with_matrix(source: Path, target: Path, matrix: Sequence[int], *, kind: bytes = b"tkhd") -> Path:
    """``matrix`` is one of `ORIENTATIONS`; ``kind`` b"mvhd" sets that of the whole movie."""
    a, b, c, d = (value << 16 for value in matrix)

    def change(inner: bytes) -> bytes:
        place = _BEFORE_MATRIX[kind]
        return inner[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + inner[place + 36 :]

    path = [b"moov", b"mvhd"] if kind == b"mvhd" else [b"moov", b"trak", b"tkhd"]
    target.write_bytes(changed(source.read_bytes(), path, change))
    return target


def without_sync_samples(source: Path, target: Path) -> Path:
    """A fragmented file whose fragments mark every sample as one that is no key frame."""
    data = bytearray(source.read_bytes())
    not_sync = struct.pack(">I", 0x01010000)
    for kind, start, end in boxes(bytes(data)):
        if kind == b"moof":
            for track, first, last in boxes(bytes(data), start + 8, end):
                if track == b"traf":
                    _clear_sync(data, first + 8, last, not_sync)
        elif kind == b"moov":
            place = data.find(b"trex", start, end)
            data[place + 24 : place + 28] = not_sync
    target.write_bytes(bytes(data))
    return target


def _clear_sync(data: bytearray, start: int, end: int, not_sync: bytes) -> None:
    for kind, first, _ in list(boxes(bytes(data), start, end)):
        place = first + 12
        flags = int.from_bytes(data[first + 9 : first + 12], "big")
        if kind == b"tfhd":
            place += 4 + 8 * bool(flags & 1) + sum(4 for bit in (2, 8, 16) if flags & bit)
            if flags & 0x20:
                data[place : place + 4] = not_sync
        elif kind == b"trun":
            count = int.from_bytes(data[place : place + 4], "big")
            place += 4 + 4 * bool(flags & 1)
            if flags & 4:
                data[place : place + 4] = not_sync
                place += 4
            before = 4 * (bool(flags & 0x100) + bool(flags & 0x200))
            size = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
            for sample in range(count if flags & 0x400 else 0):
                at = place + sample * size + before
                data[at : at + 4] = not_sync


def without_key_frame_list(source: Path, target: Path) -> Path:
    """The table of key frames (stss) lists none."""

    def change(inner: bytes) -> bytes:
        return inner[:4] + bytes(4)

    path = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stss"]
    target.write_bytes(changed(source.read_bytes(), path, change))
    return target


def with_large_mdat(source: Path, target: Path, *, num_bytes: int, size_bits: int = 32, lead: bytes = b"") -> Path:
    """``lead``, then a box of pictures that begins with ``num_bytes`` unused bytes (a hole in the file), then moov.

    No ``ftyp``: QuickTime files before 2005, and cameras that write the header last, begin like this.
    """
    data = source.read_bytes()
    parts = {kind: (start, end) for kind, start, end in boxes(data)}
    start, end = parts[b"mdat"]
    pictures = data[start + 8 : end]
    header = len(lead) + (8 if size_bits == 32 else 16)
    by = header + num_bytes - (start + 8)
    moov = changed(
        data[slice(*parts[b"moov"])],
        [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco"],
        lambda inner: inner[:8] + b"".join(struct.pack(">I", v + by) for (v,) in struct.iter_unpack(">I", inner[8:])),
    )
    size = num_bytes + len(pictures) + (8 if size_bits == 32 else 16)
    with target.open("wb") as file:
        file.write(lead)
        file.write(struct.pack(">I", size) + b"mdat" if size_bits == 32 else struct.pack(">I4sQ", 1, b"mdat", size))
        file.seek(num_bytes, 1)
        file.write(pictures + moov)
    return target
