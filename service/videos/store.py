"""The kept videos of all namespaces: records in the label store's server, features in files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import redis
from cachetools import LRUCache
from numpy.typing import NDArray

from vidlex.service import audit
from vidlex.service.errors import KeptVideoDamaged, NotFound
from vidlex.service.ids import is_id
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard, accept_any
from vidlex.service.labels.store.transaction import StepRunner
from vidlex.service.videos import upkeep
from vidlex.service.videos.commands import video_client
from vidlex.service.videos.keep import Keeping, KeepLimits
from vidlex.service.videos.keys import VideoKeys, pack_id
from vidlex.service.videos.packing import Record, thumbnail_entries, video_of
from vidlex.service.videos.pages import KeptVideoPage, VideoFilter, find_page
from vidlex.service.videos.parts import files as part_files
from vidlex.service.videos.parts import thumbnails as thumbnail_files
from vidlex.service.videos.parts.cache import TableCache
from vidlex.service.videos.parts.files import PartDamaged
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.parts.writer import PartWriter
from vidlex.service.videos.records import VIDEO_PREFIX, KeptFeatures, KeptSegment, KeptVideo, NewKeptVideo, NewThumbnail
from vidlex.service.videos.removal import remove
from vidlex.service.videos.space import Space

_MAX_CHANGES = 1024  # steps after which a process that did not follow them reads all entries again
_DEADLINE_SECONDS = 10.0
_MAX_WRITERS = 4096
_MAX_READS = 3  # of features that are being moved to another file


@dataclass(frozen=True)
class VideoLimits:
    max_bytes: int  # per namespace
    keep_seconds: float | None  # default; None: for ever


class KeptVideoStore:
    """Thread-safe. Every method raises StoreUnavailable, and ValueError for what is no namespace."""

    def __init__(self, client: redis.Redis, root: Path, limits: VideoLimits, *, guard: Guard = accept_any) -> None:
        self._client = client
        self._root = root
        self._limits = limits
        self._guard = guard
        self._lock = threading.Lock()
        self._spaces: WeakValueDictionary[str, Space] = WeakValueDictionary()
        self._writers: LRUCache[tuple[str, str], PartWriter] = LRUCache(_MAX_WRITERS)
        self._tables = TableCache()

    def keep(
        self,
        new: NewKeptVideo,
        fingerprint: str,
        segments: Sequence[KeptSegment],
        vectors: NDArray[np.float32],
        *,
        thumbnails: Sequence[NewThumbnail] | None = None,
    ) -> KeptVideo:
        """Durable on return. A video of equal content and sampling is updated: its id stays, and its features of other
        encoders too. Where ``uri``, ``client_id``, ``metadata``, ``keep_seconds`` or ``thumbnails`` are not given, the
        old ones stay.

        Raises ByteQuotaExceeded, StorageFull; ValueError for vectors that are not S finite ones of equal length.
        """
        space = self._space(new.namespace)
        limits = KeepLimits(self._limits.max_bytes, self._limits.keep_seconds)
        keeping = Keeping(
            space, limits, new, fingerprint=fingerprint, segments=segments, vectors=vectors, thumbnails=thumbnails
        )
        kept = keeping.run(self._writer(space, fingerprint))
        after = {"client_id": kept.client_id, "sha256": kept.sha256, "expires_at_ms": kept.expires_at_ms}
        audit.record("video.keep", kept.id, after=after, namespace=new.namespace)
        return kept

    def get(self, namespace: str, video_id: str) -> KeptVideo:
        """Raises NotFound, KeptVideoDamaged."""
        space = self._space(namespace)
        record = self._record(space, video_id)
        with store_errors():
            return video_of(record, namespace, space.fingerprints(space.client))

    def get_many(self, namespace: str, video_ids: Sequence[str]) -> list[KeptVideo]:
        """Those that exist, in this order. Raises KeptVideoDamaged."""
        space = self._space(namespace)
        packed = [pack_id(video_id) for video_id in video_ids if is_id(video_id, VIDEO_PREFIX)]
        with store_errors():
            records = space.records(space.client, packed)
            fingerprints = space.fingerprints(space.client)
        return [video_of(record, namespace, fingerprints) for record in records if record is not None]

    def page(
        self,
        namespace: str,
        wanted: VideoFilter,
        *,
        limit: int,
        after_id: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> KeptVideoPage:
        """Newest first; see ``find_page``. Raises KeptVideoDamaged, and what ``check`` raises."""
        space = self._space(namespace)
        table_of = partial(self._tables.table, space)
        return find_page(space, wanted, table_of, limit=limit, after_id=after_id, check=check)

    def remove(self, namespace: str, video_id: str) -> None:
        """Raises NotFound."""
        packed = [pack_id(video_id)] if is_id(video_id, VIDEO_PREFIX) else []
        if not remove(self._space(namespace), packed):
            raise _not_found(video_id)
        audit.record("video.remove", video_id, namespace=namespace)

    def features(self, namespace: str, video_id: str, fingerprint: str) -> KeptFeatures | None:
        """None if the video has none of this encoder. Raises NotFound, KeptVideoDamaged."""
        space = self._space(namespace)
        damage = ""
        for _ in range(_MAX_READS):
            record = self._record(space, video_id)
            place = record.place_of(fingerprint)
            if place is None:
                return None
            with store_errors():
                history = space.history(space.client) or ""
            head = space.head(history, fingerprint, place.part, place.dim)
            path = space.path(history, fingerprint, place.part)
            try:
                rows = part_files.read_rows(path, head, place.row, place.num_rows)
                part_files.check_rows(rows, record.packed_id)
            except PartDamaged as error:
                damage = str(error)
                continue
            times = zip(rows["start_ms"].tolist(), rows["end_ms"].tolist(), strict=True)
            return KeptFeatures([KeptSegment(start, end) for start, end in times], rows["vector"])
        raise KeptVideoDamaged(
            f"The features of the kept video {video_id} are missing or damaged; keep it again, or remove it",
            internal=damage,
        )

    def thumbnail(self, namespace: str, video_id: str, number: int) -> bytes:
        """A JPEG. Raises NotFound, KeptVideoDamaged."""
        space = self._space(namespace)
        record = self._record(space, video_id)
        entries = thumbnail_entries(record)
        if record.thumbnails is None or not 0 <= number < len(entries):
            raise NotFound(f"The kept video has {len(entries)} thumbnails")
        try:
            return thumbnail_files.read(space, record.thumbnails, entries[number])
        except PartDamaged as error:
            raise KeptVideoDamaged("The thumbnails are missing or damaged", internal=str(error)) from error

    def table(self, namespace: str, fingerprint: str) -> KeptTable:
        """Videos whose files are missing or damaged are not in it."""
        return self._tables.table(self._space(namespace), fingerprint)

    def generations(self, namespace: str) -> Mapping[str, int]:
        """Encoder fingerprint -> number of videos."""
        space = self._space(namespace)
        with store_errors():
            found = space.client.hgetall(space.keys.generations)
        return {name.decode(): int(number) for name, number in found.items() if int(number) > 0}

    def usage(self, namespace: str) -> tuple[int, int]:
        """Number of kept videos, and their bytes."""
        space = self._space(namespace)
        with store_errors():
            return space.client.zcard(space.keys.order), int(space.client.get(space.keys.num_bytes) or 0)

    def sweep(self, *, at_most_every_seconds: float = 0.0) -> upkeep.Swept:
        """Removes what has expired and what a crash has left, and gives back the space of removed videos.

        Any process may call it at any time: one at a time works on a namespace. Namespaces that any process has swept
        in the last ``at_most_every_seconds`` are passed over.
        """
        total = upkeep.Swept()
        for namespace in upkeep.namespaces(video_client(self._client)):
            space = self._space(namespace)
            total += upkeep.sweep(space, partial(self._writer, space), at_most_every_seconds)
        return total

    def _space(self, namespace: str) -> Space:
        with self._lock:
            space = self._spaces.get(namespace)
            if space is None:
                keys = VideoKeys(namespace)
                steps = StepRunner(
                    self._client,
                    keys.of_steps,
                    max_changes=_MAX_CHANGES,
                    deadline_seconds=_DEADLINE_SECONDS,
                    guard=self._guard,
                )
                space = Space(namespace, keys, video_client(self._client), steps, self._root)
                self._spaces[namespace] = space
            return space

    def _writer(self, space: Space, fingerprint: str) -> PartWriter:
        with self._lock:
            key = (space.namespace, fingerprint)
            writer = self._writers.get(key)
            if writer is None:
                writer = self._writers[key] = PartWriter(space, fingerprint)
            return writer

    def _record(self, space: Space, video_id: str) -> Record:
        if not is_id(video_id, VIDEO_PREFIX):
            raise _not_found(video_id)
        with store_errors():
            record = space.record(space.client, pack_id(video_id))
        if record is None:
            raise _not_found(video_id)
        return record


def _not_found(video_id: str) -> NotFound:
    return NotFound(f"No kept video has the id {video_id[:64]!r}")
