"""TFRecord files of ``tf.train.Example`` and ``SequenceExample`` without TensorFlow: framing, checksums, features.

Framing (``tensorflow/core/lib/io/record_writer.h``): u64 length, u32 masked CRC-32C of it, the payload, u32 masked
CRC-32C of that, all little-endian. The payload is a protocol buffer whose field 1 holds a map of features in both
messages (``Example.features``, ``SequenceExample.context``); frame features (field 2) are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from vidlex.model.data.annotations import AnnotationError

MAX_RECORD_BYTES = 16 << 20  # a frame-level record of 300 frames has about 350 kB
Value = list[int] | list[bytes] | list[float]
_REFETCH_REMEDY = "fetch this shard again"


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and payload of each record. Raises AnnotationError with that number as the line."""
    with path.open("rb") as file:
        number = 1
        while header := file.read(12):
            yield number, _payload(path, file, header, number)
            number += 1


def _payload(path: Path, file: BinaryIO, header: bytes, number: int) -> bytes:
    if len(header) < 12:
        raise AnnotationError(path, number, "the file is truncated in the header of a record", _REFETCH_REMEDY)
    length, length_crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != length_crc:
        raise AnnotationError(path, number, "not a TFRecord: wrong checksum of the length", _REFETCH_REMEDY)
    if length > MAX_RECORD_BYTES:
        raise AnnotationError(
            path, number, f"a record of {length} bytes", f"records have at most {MAX_RECORD_BYTES} bytes"
        )
    body = file.read(length + 4)
    if len(body) < length + 4:
        raise AnnotationError(path, number, "the file is truncated in a record", _REFETCH_REMEDY)
    payload = body[:length]
    if masked_crc(payload) != int(struct.unpack("<I", body[length:])[0]):
        raise AnnotationError(path, number, "wrong checksum of a record", _REFETCH_REMEDY)
    return payload


def masked_crc(data: bytes) -> int:  # TensorFlow's masked CRC-32C
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_features(payload: bytes) -> dict[str, Value]:
    """The features of an Example, or the context of a SequenceExample, by name. Raises ValueError."""
    features: dict[str, Value] = {}
    for number, wire_type, value in _fields(payload):
        if number != 1 or wire_type != 2:
            continue
        for entry_number, entry_wire_type, entry in _fields(_bytes(value)):
            if entry_number == 1 and entry_wire_type == 2:
                parts = {n: v for n, _, v in _fields(_bytes(entry))}
                name, feature = _bytes(parts.get(1, b"")), _bytes(parts.get(2, b""))
                features[name.decode("utf-8")] = _parse_feature(feature)
    return features


def _parse_feature(data: bytes) -> Value:
    # ``Feature`` message: a list of bytes (field 1), floats (2) or int64 (3), packed or not
    for number, wire_type, value in _fields(data):
        if wire_type != 2:
            break
        items = list(_fields(_bytes(value)))
        if number == 1:
            return [_bytes(item) for _, _, item in items]
        if number == 2:
            raw = b"".join(_bytes(item) for _, _, item in items)
            return list(struct.unpack(f"<{len(raw) // 4}f", raw[: len(raw) // 4 * 4]))
        if number == 3:
            return [integer for _, _, item in items for integer in _int64s(item)]
    return []


def _int64s(item: int | bytes) -> Iterator[int]:
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
        raise ValueError("expected a length-delimited field, not a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value of each field. Raises ValueError for malformed data."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == 0:
            number, position = _varint(data, position)
            yield tag >> 3, wire_type, number
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(data):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, wire_type, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a varint is truncated or too long")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
