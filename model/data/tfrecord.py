"""TFRecord files of ``tf.train.Example`` and ``SequenceExample`` without TensorFlow: framing, checksums, features.

Framing (``tensorflow/core/lib/io/record_writer.h``): u64 length, u32 masked CRC-32C of it, the payload, u32 masked
CRC-32C of that, all little-endian. The payload is a protocol buffer whose field 1 holds a map of features in both
messages (``Example.features``, ``SequenceExample.context``); frame features (field 2) are skipped unread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from vidlex.model.data.annotations import AnnotationError

MAX_RECORD_BYTES = 16 << 20
"""A frame-level record of 300 frames has about 350 kB."""

Value = list[int] | list[bytes] | list[float]
_DAMAGED = "fetch this shard again"


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and payload of each record. Raises AnnotationError with the record's number as the line."""
    with path.open("rb") as file:
        number = 1
        while header := file.read(12):
            yield number, _payload(path, file, header, number)
            number += 1


def _payload(path: Path, file: BinaryIO, header: bytes, number: int) -> bytes:
    if len(header) < 12:
        raise AnnotationError(path, number, "the file ends within a record's header", _DAMAGED)
    length, length_crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != length_crc:
        raise AnnotationError(path, number, "not a TFRecord: the checksum of a length is wrong", _DAMAGED)
    if length > MAX_RECORD_BYTES:
        raise AnnotationError(path, number, f"a record of {length} bytes", f"at most {MAX_RECORD_BYTES} are read")
    body = file.read(length + 4)
    if len(body) < length + 4:
        raise AnnotationError(path, number, "the file ends within a record", _DAMAGED)
    payload = body[:length]
    if masked_crc(payload) != int(struct.unpack("<I", body[length:])[0]):
        raise AnnotationError(path, number, "a record's checksum is wrong", _DAMAGED)
    return payload


def masked_crc(data: bytes) -> int:
    """TensorFlow's masked CRC-32C: rotated right by 15 bits plus a constant."""
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def features(payload: bytes) -> dict[str, Value]:
    """The features of an Example, or the context of a SequenceExample, by name. ValueError when it is neither."""
    found: dict[str, Value] = {}
    for field, wire, value in _fields(payload):
        if field != 1 or wire != 2:
            continue
        for inner, inner_wire, entry in _fields(_bytes(value)):
            if inner == 1 and inner_wire == 2:
                parts = {n: v for n, _, v in _fields(_bytes(entry))}
                name, feature = _bytes(parts.get(1, b"")), _bytes(parts.get(2, b""))
                found[name.decode("utf-8")] = _feature(feature)
    return found


def _feature(data: bytes) -> Value:
    """``Feature``: a list of bytes (field 1), of floats (2) or of int64 (3), packed or not."""
    for kind, wire, value in _fields(data):
        if wire != 2:
            break
        items = list(_fields(_bytes(value)))
        if kind == 1:
            return [_bytes(item) for _, _, item in items]
        if kind == 2:
            raw = b"".join(_bytes(item) for _, _, item in items)
            return list(struct.unpack(f"<{len(raw) // 4}f", raw[: len(raw) // 4 * 4]))
        if kind == 3:
            return [number for _, inner, item in items for number in _int64s(inner, item)]
    return []


def _int64s(wire: int, item: int | bytes) -> Iterator[int]:
    if isinstance(item, int):
        yield _signed(item)
        return
    position = 0
    while position < len(item):
        number, position = _varint(item, position)
        yield _signed(number)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value of each field of a message. ValueError when it is cut or malformed."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            number, position = _varint(data, position)
            yield tag >> 3, wire, number
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + length > len(data):
            raise ValueError("a field ends behind its message")
        yield tag >> 3, wire, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number is cut or too long")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
