"""Restores a record of which one byte is wrong.

The CRC-32 of a record of up to 11 KB has a Hamming distance of at least 4 (P. Koopman, 32-bit cyclic redundancy codes
for Internet applications, DSN 2002), so at most one change of a single bit makes it match. What matches must also be a
valid record whose names are those that the index of names has for the label.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from vidlex.service.labels.store.records import RecordCorrupt, label_from_json, normalized_names

# A byte of 256 is tried at every place of short records, a bit of long ones: it takes seconds.
_MAX_BYTE_TRIALS = 400_000
_MAX_BIT_TRIAL_BYTES = 24_000
_CHECKSUM_BYTES = len(',"crc32":"01234567"}')


def restored_record(label_id: str, raw: bytes, names: Sequence[str]) -> bytes | None:
    """The record, if exactly one change of one byte gives a valid one with these normalised names."""
    found = {
        candidate
        for candidate in _candidates(label_id, raw)
        if sum(old != new for old, new in zip(raw, candidate, strict=True)) == 1
        and _is_record(label_id, candidate, names)
    }
    return found.pop() if len(found) == 1 else None


def _candidates(label_id: str, raw: bytes) -> Iterator[bytes]:
    size = len(raw) - _CHECKSUM_BYTES
    if not 0 < size <= _MAX_BIT_TRIAL_BYTES:
        return
    start = zlib.crc32(label_id.encode())
    record = bytearray(raw[:size] + b"}")
    # If the wrong byte is in the checksum or around it:
    yield raw[:size] + b',"crc32":"%08x"}' % zlib.crc32(record, start)
    try:
        wanted = int(raw[size + 10 : -2], 16)
    except ValueError:
        return
    changes: Sequence[int] = range(1, 256) if size * 255 <= _MAX_BYTE_TRIALS else [1 << bit for bit in range(8)]
    before = start
    for place in range(size):
        rest = bytes(record[place + 1 :])
        for change in changes:
            byte = bytes([record[place] ^ change])
            if zlib.crc32(rest, zlib.crc32(byte, before)) == wanted:
                yield raw[:place] + byte + raw[place + 1 :]
        before = zlib.crc32(record[place : place + 1], before)


def _is_record(label_id: str, raw: bytes, names: Sequence[str]) -> bool:
    try:
        label = label_from_json(label_id, raw)
    except RecordCorrupt:
        return False
    return set(normalized_names(label)) == set(names)
