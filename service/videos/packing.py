"""The record of a kept video, as it is stored: what is filtered by and where its features are, then the rest deflated.

A dictionary of the words that nearly all records share brings the rest to about 200 bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlex.service.errors import KeptVideoDamaged
from vidlex.service.videos.keys import created_at_ms, fingerprint_digest, unpack_id
from vidlex.service.videos.parts.files import row_bytes
from vidlex.service.videos.records import KeptThumbnail, KeptVideo, NewKeptVideo

VERSION = 1
MAX_DIM = 2**16 - 1
OVERHEAD_BYTES = 400  # of a record's ids and index entries, as measured (see README.md)
MAX_BODY_BYTES = 1 << 20

# version, number of generations, updated, expires (0: never), SHA-256, token and size of the file of thumbnails
_HEAD = struct.Struct("<BBqq32s8sI")
_PLACE = struct.Struct("<8s8sIIIH")  # digest of the fingerprint, part, entry, first row, rows, D
_WORDS = (
    b'{"client":"key_","client_id":"","facts":{"bytes":,"codec":"h264","duration_ms":,"fps":24.0,"fps":25.0,"fps":'
    b'29.97002997002997,"fps":30.0,"height":240,"height":360,"height":480,"height":720,"height":1080,"start_ms":0,'
    b'"width":320,"width":640,"width":854,"width":1280,"width":1920},"metadata":{},"receipt":{"decoder":"PyAV 18.1.0, '
    b'FFmpeg 8.1.2","encoder":"fast bfloat16","encoder":"","frame_policy":"uniform","frames_blank":0,'
    b'"frames_decoded":8,"frames_failed":0,"model":"photo-small","service":"vidlex 0.1.0"},"sampling":{"aggregate_by":'
    b'"video","aggregate_by":"segments","end_ms":null,"frame_policy":"shots","num_frames":8,"segment_ms":null,'
    b'"segment_ms":4000,"start_ms":null},"uri":"https://","uri":"s3://","uri":null}'
)

ENTRY = np.dtype([("id", "u1", (15,)), ("unused", "u1"), ("row", "<u4"), ("num_rows", "<u4")])  # 24 bytes
KILL = np.dtype("<u4")


@dataclass(frozen=True)
class Place:
    """Where the features of one encoder are: ``num_rows`` rows from ``row`` on, by entry ``entry`` of ``part``."""

    fingerprint_digest: bytes
    part: str
    entry: int
    row: int
    num_rows: int
    dim: int

    @property
    def num_bytes(self) -> int:
        return self.num_rows * row_bytes(self.dim)

    def as_entry(self, packed_id: bytes) -> bytes:
        return packed_id + b"\0" + struct.pack("<II", self.row, self.num_rows)


@dataclass(frozen=True)
class Record:
    packed_id: bytes
    sha256: bytes
    updated_at_ms: int
    expires_at_ms: int | None
    places: tuple[Place, ...]
    body: bytes  # deflated
    thumbnails: str | None = None  # token of their file
    thumbnail_bytes: int = 0

    def place_of(self, fingerprint: str) -> Place | None:
        wanted = fingerprint_digest(fingerprint)
        return next((place for place in self.places if place.fingerprint_digest == wanted), None)

    @property
    def num_bytes(self) -> int:
        size = _HEAD.size + _PLACE.size * len(self.places) + len(self.body) + OVERHEAD_BYTES
        return size + self.thumbnail_bytes + sum(place.num_bytes for place in self.places)

    def packed(self) -> bytes:
        times = (self.updated_at_ms, self.expires_at_ms or 0)
        token = bytes.fromhex(self.thumbnails or "")  # padded with zeros
        head = _HEAD.pack(VERSION, len(self.places), *times, self.sha256, token, self.thumbnail_bytes)
        places = (
            _PLACE.pack(p.fingerprint_digest, bytes.fromhex(p.part), p.entry, p.row, p.num_rows, p.dim)
            for p in self.places
        )
        return head + b"".join(places) + self.body


def unpack(packed_id: bytes, raw: bytes) -> Record:
    """Raises KeptVideoDamaged."""
    try:
        version, num_places, updated, expires, sha256, token, thumbnail_bytes = _HEAD.unpack_from(raw)
        if version != VERSION:
            raise ValueError(f"its version is {version}")
        places = []
        for i in range(num_places):
            fingerprint, part, entry, row, num_rows, dim = _PLACE.unpack_from(raw, _HEAD.size + i * _PLACE.size)
            places.append(Place(fingerprint, part.hex(), entry, row, num_rows, dim))
    except (struct.error, ValueError) as error:
        raise _damaged(packed_id, error) from error
    body = raw[_HEAD.size + num_places * _PLACE.size :]
    thumbnails = token.hex() if any(token) else None
    return Record(packed_id, sha256, updated, expires or None, tuple(places), body, thumbnails, thumbnail_bytes)


def pack_body(new: NewKeptVideo, thumbnails: Sequence[Sequence[int]] = ()) -> bytes:
    """``thumbnails``: see ThumbnailFile. Raises ValueError if it is too large."""
    members = {
        "client": new.client,
        "client_id": new.client_id,
        "facts": new.facts,
        "metadata": new.metadata,
        "receipt": new.receipt,
        "sampling": new.sampling,
        "uri": new.uri,
        "keep_seconds": new.keep_seconds,
        **({"thumbnails": thumbnails} if thumbnails else {}),
    }
    text = canonical_json(members)
    if len(text) > MAX_BODY_BYTES:
        raise ValueError(f"facts, receipt, metadata and the like of a kept video exceed {MAX_BODY_BYTES} bytes")
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=_WORDS)
    return deflate.compress(text) + deflate.flush()


def video_of(record: Record, namespace: str, fingerprints: Mapping[bytes, str]) -> KeptVideo:
    """``fingerprints`` by their digests. Raises KeptVideoDamaged."""
    try:
        body = _body_of(record)
        return KeptVideo(
            id=unpack_id(record.packed_id),
            namespace=namespace,
            client=body["client"],
            sha256=record.sha256.hex(),
            sampling=body["sampling"],
            facts=body["facts"],
            receipt=body["receipt"],
            uri=body["uri"],
            client_id=body["client_id"],
            metadata=body["metadata"],
            keep_seconds=body["keep_seconds"],
            created_at_ms=created_at_ms(record.packed_id),
            updated_at_ms=record.updated_at_ms,
            expires_at_ms=record.expires_at_ms,
            num_bytes=record.num_bytes,
            generations={
                fingerprints[place.fingerprint_digest]: place.num_rows
                for place in record.places
                if place.fingerprint_digest in fingerprints
            },
            thumbnails=tuple(KeptThumbnail(*entry[:3]) for entry in body.get("thumbnails", ())),
        )
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise _damaged(record.packed_id, error) from error


def thumbnail_entries(record: Record) -> list[list[int]]:
    """Raises KeptVideoDamaged."""
    try:
        return list(_body_of(record).get("thumbnails", ()))
    except (zlib.error, ValueError, AttributeError) as error:
        raise _damaged(record.packed_id, error) from error


def _body_of(record: Record) -> dict[str, Any]:
    inflate = zlib.decompressobj(-15, zdict=_WORDS)
    body: dict[str, Any] = json.loads(inflate.decompress(record.body, 2 * MAX_BODY_BYTES))
    return body


def canonical_json(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def _damaged(packed_id: bytes, error: Exception) -> KeptVideoDamaged:
    return KeptVideoDamaged(f"The record of the kept video {unpack_id(packed_id)} is damaged", internal=repr(error))
