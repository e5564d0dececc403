"""Lists of kept videos, newest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vidlex.service.bounds import MAX_PAGE_BYTES
from vidlex.service.ids import is_id
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.metadata_limits import sent_bytes
from vidlex.service.videos.keys import PACKED_ID_BYTES, client_id_digest, first_id_of, pack_id, unpack_id
from vidlex.service.videos.packing import video_of
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.records import VIDEO_PREFIX, KeptVideo
from vidlex.service.videos.space import Space

_CHUNK = 1000
_MAX_CHUNK = 20_000
MAX_PASSED_OVER = 100_000  # videos with features that a page of those without is looked for among
_VIDEO_BYTES = 1500  # in an answer, without its metadata


@dataclass(frozen=True)
class VideoFilter:
    """All that are given must hold. Times are inclusive."""

    client_id: str | None = None
    sha256: str | None = None
    created_from_ms: int | None = None
    created_to_ms: int | None = None
    missing_fingerprint: str | None = None  # videos without readable features of this encoder


@dataclass(frozen=True)
class KeptVideoPage:
    data: list[KeptVideo]
    has_more: bool
    last_id: str | None  # the next page begins after it; None if there is nothing


def find_page(
    space: Space,
    wanted: VideoFilter,
    table_of: Callable[[str], KeptTable],
    *,
    limit: int,
    after_id: str | None,
    check: Callable[[], None] = lambda: None,
) -> KeptVideoPage:
    """Ends early after MAX_PAGE_BYTES of metadata, and after MAX_PASSED_OVER videos that have the features which
    ``wanted`` says are missing. ``check`` is called now and then; it may raise.

    Raises StoreUnavailable, KeptVideoDamaged.
    """
    low, high = _bounds(wanted, after_id)
    missing = None if wanted.missing_fingerprint is None else table_of(wanted.missing_fingerprint)
    found: list[KeptVideo] = []
    sent = num_passed_over = 0
    with store_errors():
        if missing is not None and missing.num_videos == space.client.zcard(space.keys.order):
            return KeptVideoPage([], has_more=False, last_id=None)
        fingerprints = space.fingerprints(space.client)
        for candidates in _ids(space, wanted, low, high):
            check()
            has = [False] * len(candidates) if missing is None else missing.contains(candidates).tolist()
            ids = [packed for packed, is_there in zip(candidates, has, strict=True) if not is_there]
            step = min(_CHUNK, limit + 1)
            for at in range(0, len(ids), step):
                for record in space.records(space.client, ids[at : at + step]):
                    if record is None:
                        continue
                    video = video_of(record, space.namespace, fingerprints)
                    if wanted.client_id is not None and video.client_id != wanted.client_id:
                        continue
                    if wanted.sha256 is not None and video.sha256 != wanted.sha256:
                        continue
                    sent += _VIDEO_BYTES + sent_bytes(video.metadata)
                    if len(found) == limit or (found and sent > MAX_PAGE_BYTES):
                        return KeptVideoPage(found, has_more=True, last_id=found[-1].id)
                    found.append(video)
            num_passed_over += len(candidates) - len(ids)
            if num_passed_over >= MAX_PASSED_OVER:
                return KeptVideoPage(found, has_more=True, last_id=unpack_id(candidates[-1]))
    return KeptVideoPage(found, has_more=False, last_id=found[-1].id if found else None)


def _bounds(wanted: VideoFilter, after_id: str | None) -> tuple[bytes, bytes]:
    """Lowest id, and the one below which all are."""
    low = b"\0" * PACKED_ID_BYTES if wanted.created_from_ms is None else first_id_of(wanted.created_from_ms)
    high = b"\xff" * (PACKED_ID_BYTES + 1)
    if wanted.created_to_ms is not None:
        high = first_id_of(wanted.created_to_ms + 1)
    if after_id is not None and is_id(after_id, VIDEO_PREFIX):
        high = min(high, pack_id(after_id))
    return low, high


def _ids(space: Space, wanted: VideoFilter, low: bytes, high: bytes) -> Iterator[list[bytes]]:
    keys, client = space.keys, space.client
    if wanted.sha256 is not None:
        try:
            entries = space.ids_of_content(client, bytes.fromhex(wanted.sha256))
        except ValueError:
            return
        yield sorted((packed for _, packed in entries if low <= packed < high), reverse=True)
        return
    key, prefix = keys.order, b""
    if wanted.client_id is not None:
        key, prefix = keys.client_ids, client_id_digest(wanted.client_id)
    size = _CHUNK
    while True:
        members = client.zrevrangebylex(key, b"(" + prefix + high, b"[" + prefix + low, start=0, num=size)
        if not members:
            return
        yield [member[len(prefix) :] for member in members]
        high, size = members[-1][len(prefix) :], min(2 * size, _MAX_CHUNK)
