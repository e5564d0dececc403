"""Videos with forged or damaged headers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.answers import ANY_ANSWER, OK, TOO_LARGE, TOO_LONG, UNDECODABLE, UNSUPPORTED
from fuzz.forged_headers import claim_duration, find_box, write_claimed_size
from fuzz.writing import write


def forged_files(folder: Path) -> Iterator[tuple[Any, ...]]:
    plain = folder / "plain.mp4"
    write(plain)
    for name, width, height, in_container in (
        ("claims 20000x20000.mp4", 20_000, 20_000, True),
        ("stream header claims 16000x16000.mp4", 16_000, 16_000, False),
        ("claims 16x16000.mp4", 16, 16_000, True),
    ):
        target = write_claimed_size(plain, folder / "forged.mp4", width=width, height=height, in_container=in_container)
        yield name, target.read_bytes(), TOO_LARGE
    write(folder / "short.mkv")
    forged = claim_duration(folder / "short.mkv", folder / "forged.mkv", seconds=1e9)
    yield "claims 1e9 seconds.mkv", forged.read_bytes(), OK, TOO_LONG
    yield "1e6 frames per second.mp4", write(folder / "fast.mp4", rate=1_000_000, num_frames=40), OK
    wide = write(folder / "wide.mp4", "mpeg4", width=8000, height=200, num_frames=2)
    yield "a wide strip.mp4", wide, TOO_LARGE


def mp4_box(kind: bytes, payload: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack(">I", len(payload) + 8 if size is None else size) + kind + payload


def broken_files(base: bytes) -> Iterator[tuple[Any, ...]]:
    moov, moov_end = find_box(base, 0, len(base), b"moov")
    yield "moov is missing.mp4", base[:moov], UNDECODABLE
    yield "half of moov.mp4", base[: (moov + moov_end) // 2], OK, UNDECODABLE  # the missing half describes the audio
    yield "moov only.mp4", base[:32] + base[moov:moov_end], UNDECODABLE
    yield "half of the data.mp4", base[: moov // 2] + base[moov:moov_end], OK, UNDECODABLE
    yield "header only.mp4", base[:12], UNDECODABLE
    yield "playlist after a header.mp4", base[:32] + b"#EXTM3U\nfile:///etc/passwd\n", UNDECODABLE
    nested = b""
    for _ in range(2000):
        nested = mp4_box(b"trak" if len(nested) % 16 else b"moov", nested)
    yield "nested two thousand deep.mp4", base[:32] + mp4_box(b"moov", nested), UNDECODABLE
    yield "a box of 2^63 bytes.mp4", base[:32] + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + base, OK, UNDECODABLE
    yield "a box of no bytes.mp4", base[:32] + mp4_box(b"moov", base, size=0), OK, UNDECODABLE
    yield "a box smaller than its header.mp4", base[:32] + mp4_box(b"moov", base, size=3), OK, UNDECODABLE
    for table in (b"stsz", b"stts", b"stsc", b"stco"):
        yield f"{table.decode()} of 2^31 entries.mp4", _patched(base, table, 8, b"\x7f\xff\xff\xff"), *ANY_ANSWER
    yield "no time scale.mp4", _patched(base, b"mdhd", 16, bytes(4)), *ANY_ANSWER
    yield "zeroed codec.mp4", base.replace(b"avc1", bytes(4)), UNSUPPORTED, UNDECODABLE
    yield "wrong codec.mp4", base.replace(b"avc1", b"hev1"), UNSUPPORTED, UNDECODABLE
    yield "empty mkv.mkv", b"\x1a\x45\xdf\xa3" + b"\xff" * 500, UNDECODABLE
    yield "empty avi.avi", b"RIFF\xff\xff\xff\xffAVI LIST" + bytes(500), UNDECODABLE
    yield "empty gif.gif", b"GIF89a" + bytes(1000), UNDECODABLE
    yield "empty ts.ts", (b"\x47\x1f\xff\x10" + bytes(184)) * 50, UNDECODABLE
    yield "packets of nothing.ts", (b"\x47" + bytes(187)) * 50, UNSUPPORTED


def _patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """``data`` with ``value`` at ``offset`` bytes after the type of the first box of that kind."""
    place = data.index(kind) + 4 + offset
    return data[:place] + value + data[place + len(value) :]
