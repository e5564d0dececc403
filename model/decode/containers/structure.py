"""Walks through a container by its own length fields, without a demuxer: boxes of MP4, elements of Matroska, chunks of
RIFF, objects of ASF.

The bytes are hostile: only headers are read, and a walk ends at the first impossible one.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

ASF_HEADER_BYTES = 30
MAX_STEPS = 200_000  # headers read of one file; a two-hour video has some 10,000 clusters or fragments


@dataclass(frozen=True)
class Element:
    kind: bytes
    start: int  # of its content
    end: int  # as claimed: may be after the end of the file
    has_size: bool = True  # False: it lasts until the end of what contains it


class Structure:
    """An open file and how many headers may still be read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._steps_left = MAX_STEPS
        self.num_bytes = file.seek(0, io.SEEK_END)
        self.whole_file = Element(b"", 0, self.num_bytes)

    @property
    def is_exhausted(self) -> bool:
        return self._steps_left <= 0

    def read(self, start: int, num_bytes: int) -> bytes:
        if num_bytes <= 0:
            return b""
        self._file.seek(start)
        return self._file.read(num_bytes)

    def read_whole(self, start: int, num_bytes: int) -> bytes:
        """Nothing if the file is too short for all of them."""
        return self.read(start, num_bytes) if start + num_bytes <= self.num_bytes else b""

    def content(self, element: Element, num_bytes: int) -> bytes:
        """Up to ``num_bytes`` from the start of the element's content."""
        return self.read(element.start, min(num_bytes, element.end - element.start))

    def mp4_boxes(self, parent: Element, *, skip: int = 0) -> Iterator[Element]:
        """The boxes in ``parent``, whose content begins with ``skip`` bytes of fields."""
        place, end = parent.start + skip, min(parent.end, self.num_bytes)
        while place < end and self._step():
            header = self.read(place, min(16, end - place))
            if len(header) < 8:
                return
            size, kind = struct.unpack_from(">I4s", header)
            header_size, has_size = 8, True
            if size == 1 and len(header) == 16:
                size, header_size = struct.unpack_from(">Q", header, 8)[0], 16
            elif size == 0:
                size, has_size = end - place, False
            if size < header_size:
                return
            yield Element(kind, place + header_size, place + size, has_size)
            place += size

    def find_boxes(self, parent: Element, *path: bytes) -> Iterator[Element]:
        """All boxes at ``path`` of nested kinds."""
        for box in self.mp4_boxes(parent):
            if box.kind == path[0]:
                if len(path) == 1:
                    yield box
                else:
                    yield from self.find_boxes(box, *path[1:])

    def matroska_elements(self, parent: Element) -> Iterator[Element]:
        """The elements in ``parent``. One of unknown size is given as the last."""
        place, end = parent.start, min(parent.end, self.num_bytes)
        while place < end and self._step():
            header = self.read(place, min(12, end - place))
            id_size = _vint_length(header, 0)
            length = _vint_length(header, id_size)
            if not (1 <= id_size <= 4 and length) or id_size + length > len(header):
                return
            size = int.from_bytes(header[id_size : id_size + length], "big") & ((1 << 7 * length) - 1)
            has_size = size != (1 << 7 * length) - 1
            content = place + id_size + length
            place = content + size if has_size else end
            yield Element(header[:id_size], content, place, has_size)

    def riff_chunks(self, parent: Element) -> Iterator[Element]:
        """``kind`` is the form for a RIFF or LIST, whose content begins after it."""
        place, end = parent.start, min(parent.end, self.num_bytes)
        while place < end and self._step():
            header = self.read(place, min(12, end - place))
            if len(header) < 8:
                return
            kind, size = struct.unpack_from("<4sI", header)
            is_list = kind in (b"RIFF", b"LIST")
            yield Element(header[8:12] if is_list else kind, place + (12 if is_list else 8), place + 8 + size)
            place += 8 + size + size % 2

    def asf_objects(self, parent: Element, *, skip: int = 0) -> Iterator[Element]:
        """``kind`` is a GUID. The header's objects are those of the whole file after ``skip=ASF_HEADER_BYTES``."""
        place, end = parent.start + skip, min(parent.end, self.num_bytes)
        while place < end and self._step():
            header = self.read(place, 24)
            size = int.from_bytes(header[16:], "little")
            if len(header) < 24 or size < 24:
                return
            yield Element(header[:16], place + 24, place + size)
            place += size

    def flv_tags(self) -> Iterator[Element]:
        """``kind`` is the byte with the tag's type. The last one is no tag if something else follows."""
        place = 13
        while place < self.num_bytes and self._step():
            header = self.read(place, 11)
            if len(header) < 11:
                return
            end = place + 11 + int.from_bytes(header[1:4], "big")
            yield Element(header[:1], place + 11, end)
            place = end + 4

    def gif_is_cut(self) -> bool:
        """Whether the file ends inside of a block."""
        flags = self.read(10, 1)
        place = 13 + _color_table_bytes(flags)
        while place < self.num_bytes and self._step():
            kind = self.read(place, 1)
            if kind == b"!":  # extension
                place += 2
            elif kind == b",":  # picture: position, size, flags; then the first code's length
                place += 11 + _color_table_bytes(self.read(place + 9, 1))
            else:  # the trailer, or something that FFmpeg would skip
                return False
            size = self.read(place, 1)
            while size > b"\0" and self._step():
                place += 1 + size[0]
                size = self.read(place, 1)
            place += 1
        return place > self.num_bytes

    def _step(self) -> bool:
        self._steps_left -= 1
        return self._steps_left >= 0


def _color_table_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _vint_length(header: bytes, place: int) -> int:
    """Bytes of the number at ``place``, by its leading zero bits; 0 if there is none."""
    return 9 - header[place].bit_length() if place < len(header) and header[place] else 0
