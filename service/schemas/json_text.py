"""Parses JSON that others wrote.

Its values are counted before it is parsed: the time that takes grows with their number, not with that of bytes.
"""

from __future__ import annotations

import json

from vidlex.service.bounds import MAX_JSON_LEVELS, MAX_JSON_VALUES
from vidlex.service.errors import InvalidRequest, JsonTooComplex

_CHUNK_BYTES = 64 << 10  # between two chunks, other threads may run
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def parse_json(data: bytes, *, name: str, max_values: int = MAX_JSON_VALUES) -> object:
    """Accepts a byte order mark, which editors and PowerShell write; refuses NaN and Infinity.

    Raises InvalidRequest, JsonTooComplex.
    """
    check_json(data, name=name, max_values=max_values, max_levels=MAX_JSON_LEVELS)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed: object = json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid UTF-8 JSON", internal=repr(error)[:200]) from None
    return parsed


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
