"""What all operations on the kept videos of one namespace share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from vidlex.service.errors import KeptVideoDamaged
from vidlex.service.labels.store.transaction import StepRunner
from vidlex.service.videos.commands import VideoClient, VideoReads, VideoWrites
from vidlex.service.videos.keys import (
    CONTENT_BYTES,
    PACKED_ID_BYTES,
    SAMPLING_BYTES,
    VideoKeys,
    client_id_digest,
    digest,
    fingerprint_digest,
)
from vidlex.service.videos.packing import KILL, Place, Record, canonical_json, unpack
from vidlex.service.videos.parts.files import SUFFIX, PartHead
from vidlex.service.videos.records import NewKeptVideo

_log = structlog.get_logger("vidlex.videos")

_CONTENT_ENTRY_BYTES = SAMPLING_BYTES + PACKED_ID_BYTES


@dataclass(frozen=True)
class StoredPart:
    """What the store says of a part. A sealed one is not appended to any more."""

    dim: int
    created_at_ms: int
    is_sealed: bool = False
    is_stuck: bool = False  # rows that count cannot be read, so that it cannot be emptied

    def packed(self) -> str:
        flags = [name for name, is_set in (("sealed", self.is_sealed), ("stuck", self.is_stuck)) if is_set]
        return json.dumps({"dim": self.dim, "created": self.created_at_ms, **dict.fromkeys(flags, 1)})

    @classmethod
    def parse(cls, raw: bytes) -> StoredPart:
        found = json.loads(raw)
        return cls(int(found["dim"]), int(found["created"]), "sealed" in found, "stuck" in found)


@dataclass(frozen=True)
class Space:
    namespace: str
    keys: VideoKeys
    client: VideoClient
    steps: StepRunner
    root: Path

    def folder(self, history: str, fingerprint: str) -> Path:
        return self.root / self.namespace / history / fingerprint_digest(fingerprint).hex()

    def path(self, history: str, fingerprint: str, part: str) -> Path:
        return self.folder(history, fingerprint) / f"{part}{SUFFIX}"

    def head(self, history: str, fingerprint: str, part: str, dim: int) -> PartHead:
        return PartHead(self.namespace, history, fingerprint, part, dim)

    def history(self, reads: VideoReads) -> str | None:
        raw = reads.get(self.keys.history)
        return None if raw is None else raw.decode("ascii", "replace")

    def fingerprints(self, reads: VideoReads) -> dict[bytes, str]:
        return {fingerprint_digest(name.decode()): name.decode() for name in reads.hgetall(self.keys.generations)}

    def record(self, reads: VideoReads, packed_id: bytes) -> Record | None:
        """Raises KeptVideoDamaged."""
        raw = reads.hget(self.keys.records, packed_id)
        return None if raw is None else unpack(packed_id, raw)

    def records(self, reads: VideoReads, packed_ids: Sequence[bytes]) -> list[Record | None]:
        """None for a damaged one too."""
        if not packed_ids:
            return []
        records: list[Record | None] = []
        for packed_id, raw in zip(packed_ids, reads.hmget(self.keys.records, packed_ids), strict=True):
            try:
                records.append(None if raw is None else unpack(packed_id, raw))
            except KeptVideoDamaged as error:
                _log.error("kept_video_damaged", namespace=self.namespace, detail=str(error), internal=error.internal)
                records.append(None)
        return records

    def parts(self, reads: VideoReads, fingerprint: str) -> dict[str, StoredPart]:
        found = reads.hgetall(self.keys.parts(fingerprint))
        return {part.decode(): StoredPart.parse(raw) for part, raw in found.items()}

    def ids_of_content(self, reads: VideoReads, sha256: bytes) -> list[tuple[bytes, bytes]]:
        """(digest of the sampling, packed id)."""
        raw = reads.hget(self.keys.contents, sha256[:CONTENT_BYTES]) or b""
        entries = [raw[at : at + _CONTENT_ENTRY_BYTES] for at in range(0, len(raw), _CONTENT_ENTRY_BYTES)]
        return [(entry[:SAMPLING_BYTES], entry[SAMPLING_BYTES:]) for entry in entries]


def sampling_digest(new: NewKeptVideo) -> bytes:
    return digest(canonical_json(new.sampling), SAMPLING_BYTES)


def client_id_member(client_id: str, packed_id: bytes) -> bytes:
    return client_id_digest(client_id) + packed_id


def forget(
    writes: VideoWrites, keys: VideoKeys, record: Record, client_id: str | None, contents: Iterable[tuple[bytes, bytes]]
) -> None:
    """Queue the removal of a record. ``contents`` are the entries of its SHA-256 that stay."""
    packed_id, content = record.packed_id, record.sha256[:CONTENT_BYTES]
    writes.hdel(keys.records, packed_id)
    writes.zrem(keys.order, packed_id)
    writes.zrem(keys.expiry, packed_id)
    if client_id is not None:
        writes.zrem(keys.client_ids, client_id_member(client_id, packed_id))
    rest = b"".join(sampling + other for sampling, other in contents)
    if rest:
        writes.hset(keys.contents, content, rest)
    else:
        writes.hdel(keys.contents, content)


def kill(writes: VideoWrites, keys: VideoKeys, places: Iterable[Place]) -> None:
    by_part: dict[str, list[int]] = {}
    for place in places:
        by_part.setdefault(place.part, []).append(place.entry)
    for part, entries in by_part.items():
        writes.append(keys.kills(part), b"".join(entry.to_bytes(KILL.itemsize, "little") for entry in entries))


def count_generations(
    writes: VideoWrites, keys: VideoKeys, fingerprints: Mapping[bytes, str], places: Iterable[Place], change: int
) -> None:
    counts: dict[str, int] = {}
    for place in places:
        name = fingerprints.get(place.fingerprint_digest)
        if name is not None:
            counts[name] = counts.get(name, 0) + change
    for name, number in counts.items():
        writes.hincrby(keys.generations, name, number)
