"""Removes videos. Their rows count no more at once; upkeep gives their space back."""

from __future__ import annotations

from collections.abc import Collection

from vidlex.service.errors import KeptVideoDamaged
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.redis_types import RedisPipeline, RedisWrites
from vidlex.service.labels.store.transaction import NoStep, Step
from vidlex.service.videos.commands import VideoReads, reads_of, writes_of
from vidlex.service.videos.packing import Record, video_of
from vidlex.service.videos.parts.thumbnails import retired_name
from vidlex.service.videos.space import Space, count_generations, forget, kill


def remove(space: Space, packed_ids: Collection[bytes], *, expired_at_ms: int | None = None) -> int:
    """How many there were; with ``expired_at_ms`` only those that have expired by then. Raises StoreUnavailable."""

    def body(pipe: RedisPipeline, revision: int) -> Step[int] | NoStep[int]:
        reads, keys = reads_of(pipe), space.keys
        records = [record for record in space.records(reads, list(packed_ids)) if record is not None]
        if expired_at_ms is not None:
            records = [r for r in records if r.expires_at_ms is not None and r.expires_at_ms <= expired_at_ms]
        if not records:
            return NoStep(0)
        fingerprints = space.fingerprints(reads)
        places = [place for record in records for place in record.places]
        going = {record.packed_id for record in records}
        rest = {
            record.sha256: [entry for entry in space.ids_of_content(reads, record.sha256) if entry[1] not in going]
            for record in records
        }
        is_last = reads.zcard(keys.order) == len(records)
        now_ms = store_now_ms(reads)
        client_ids = {record.packed_id: _client_id(reads, space, record) for record in records}

        def write(queue: RedisWrites) -> None:
            writes = writes_of(queue)
            for record in records:
                forget(writes, keys, record, client_ids[record.packed_id], rest[record.sha256])
            kill(writes, keys, places)
            pictures = [record.thumbnails for record in records if record.thumbnails is not None]
            if pictures:
                writes.zadd(keys.retired, {retired_name(space, token): now_ms for token in pictures})
            count_generations(writes, keys, fingerprints, places, -1)
            writes.incrby(keys.num_bytes, -sum(record.num_bytes for record in records))

        return Step(len(records), write, "remove", (), leaves_nothing=is_last)

    return space.steps.run(body)


def _client_id(reads: VideoReads, space: Space, record: Record) -> str | None:
    try:
        return video_of(record, space.namespace, {}).client_id
    except KeptVideoDamaged:
        return None  # its index entry leads to no record, and is passed over
