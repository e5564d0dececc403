"""Bounds of a JSON document before it is parsed: the time that takes grows with the number of values, not of bytes."""

from __future__ import annotations

from vidlex.service.errors import JsonTooComplex

_CHUNK_BYTES = 64 << 10  # between two chunks, other threads may run
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_json(data: bytes, *, name: str, max_values: int, max_levels: int) -> None:
    """Raises JsonTooComplex if ``data`` has more values or levels of nesting; does not check that it is JSON."""
    level = num_values = position = 0
    in_string = False
    while position < len(data):
        chunk = data[position : position + _CHUNK_BYTES]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 and position + len(chunk) < len(data):
            chunk = chunk[:-1]  # an escape stays whole
        position += len(chunk)
        parts = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[1 if in_string else 0 :: 2])
        in_string ^= len(parts) % 2 == 0
        num_values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if num_values > max_values:
            raise JsonTooComplex(f"{name} has more than {max_values} values")
        for byte in outside.translate(None, _NOT_BRACKETS):
            level += 1 if byte in b"[{" else -1
            if level > max_levels:
                raise JsonTooComplex(f"{name} has more than {max_levels} levels of objects and lists")
