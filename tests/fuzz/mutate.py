"""Random changes to files, reproducible from a seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_BOXES = re.compile(
    rb"moov|trak|mdia|minf|stbl|stsd|stts|stss|stsc|stsz|stco|ctts|edts|elst|mvhd|tkhd|mdhd|hdlr|avcC|mdat|moof|traf|"
    rb"tfhd|trun|hdrl|strl|strh|strf|movi|idx1|\x1a\x45\xdf\xa3|\x1f\x43\xb6\x75|"
    rb"VP8X|ANIM|ANMF|VP8L|OggS|\x80theora|\x81theora|\x82theora|FLV\x01|onMetaData|IHDR|IDAT|icpf|"
    rb"\x21\xf9\x04|\x21\xff\x0b|GIF8|"  # GIF
    rb"\0\0\x01[\xb3\xb5\xb8\xba\xbb\xe0]|"  # MPEG
    rb"\x30\x26\xb2\x75|\xa1\xdc\xab\x8c|\x91\x07\xdc\xb7|\x36\x26\xb2\x75|\x82\0\0"  # ASF
)
_LITTLE_ENDIAN = re.compile(rb"RIFF|LIST|hdrl|strh|strf|movi|idx1|00dc|VP8X|ANIM|ANMF|VP8L")
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 0xFFFF)
# Mostly left unchanged: a file with a wrong signature is rejected before it is parsed.
_SIGNATURE_BYTES = 12

Mutation = Callable[[bytearray, np.random.Generator, Sequence[bytes]], None]


def mutate(files: Sequence[bytes], *, donors: Sequence[bytes], seed: int, number: int) -> bytes:
    """One of the ``files``, changed in one to three ways. Splices take their bytes from ``donors``."""
    rng = np.random.default_rng((seed, number))
    data = bytearray(files[int(rng.integers(len(files)))])
    signature = bytes(data[:_SIGNATURE_BYTES])
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            break
        _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](data, rng, donors)
    if rng.random() < 0.9:
        data[: len(signature)] = signature
    return bytes(data)


def _position(data: bytearray, rng: np.random.Generator) -> int:
    """A random position; in half of all cases close to a header, where a change has the most effect."""
    if rng.random() < 0.5:
        boxes = [found.start() for found in _BOXES.finditer(data)]
        if boxes:
            near = boxes[int(rng.integers(len(boxes)))] + int(rng.integers(-4, 48))
            return min(max(0, near), len(data) - 1)
    return int(rng.integers(len(data)))


def _flip_bits(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    for _flip in range(int(rng.integers(1, 17))):
        data[_position(data, rng)] ^= 1 << int(rng.integers(8))


def _write_number(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    position, size = _position(data, rng), int(rng.choice((1, 2, 4, 8)))
    data[position : position + size] = (value % 256**size).to_bytes(size, "big")


def _change_length(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    boxes = [found.start() for found in _BOXES.finditer(data) if found.start() >= 4]
    if boxes:
        position = boxes[int(rng.integers(len(boxes)))] - 4
        length = int.from_bytes(data[position : position + 4], "big")
        changed = (length + int(rng.choice((-8, -1, 1, 8, 1000, -length, 2**31)))) % 2**32
        data[position : position + 4] = changed.to_bytes(4, "big")


def _change_chunk_length(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    """As `_change_length`, for RIFF: the length stands after the name, its low byte first."""
    chunks = [found.end() for found in _LITTLE_ENDIAN.finditer(data)]
    if chunks:
        position = chunks[int(rng.integers(len(chunks)))]
        length = int.from_bytes(data[position : position + 4], "little")
        changed = (length + int(rng.choice((-8, -1, 1, 8, 1000, -length, 2**31)))) % 2**32
        data[position : position + 4] = changed.to_bytes(4, "little")


def _cut(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    del data[_position(data, rng) :]


def _drop(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    position = _position(data, rng)
    del data[position : position + int(rng.integers(1, 200))]


def _repeat(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    position = _position(data, rng)
    piece = bytes(data[position : position + int(rng.integers(1, 200))])
    data[position:position] = piece * int(rng.integers(1, 20))


def _splice(data: bytearray, rng: np.random.Generator, donors: Sequence[bytes]) -> None:
    other = donors[int(rng.integers(len(donors)))]
    if other:
        start, position = int(rng.integers(len(other))), _position(data, rng)
        piece = other[start : start + int(rng.integers(1, 2000))]
        data[position : position + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _blank(data: bytearray, rng: np.random.Generator, _: Sequence[bytes]) -> None:
    position, size = _position(data, rng), int(rng.integers(1, 500))
    size = min(size, len(data) - position)
    data[position : position + size] = bytes([int(rng.choice((0, 255)))]) * size


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _flip_bits, _write_number, _write_number, _change_length, _change_chunk_length, _cut, _drop, _repeat,
    _splice, _blank,
)  # fmt: skip
