"""Files of the videos that a label matches: written once, never changed, read in place."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from vidlex.model.files import replace_atomically
from vidlex.service.errors import FULL_DISK_ERRORS, StorageFull
from vidlex.service.ids import is_id
from vidlex.service.videos.keys import PACKED_ID_BYTES, pack_id, unpack_id
from vidlex.service.videos.records import VIDEO_PREFIX

ID_TYPE = np.dtype("S15")  # packed ids

_MAGIC = b"VIDLEXM1"
_HEAD = struct.Struct("<8sQQI")
_CHUNK = 16_384
_MAX_CHECKED = 10_000  # files whose checksum is known to hold


@dataclass(frozen=True)
class MatchedVideo:
    """Without a score and a stretch if it is lost."""

    video_id: str
    score: float | None
    start_ms: int | None
    end_ms: int | None
    change: Literal["gained", "lost"] | None


@dataclass(frozen=True, eq=False)
class MatchedVideos:
    """k videos, sorted by id, and those that matched before and were scored again but do not match any more.

    Of a file, the arrays are views of it: only what is used of them is read.
    """

    ids: NDArray[np.bytes_]  # [k]
    scores: NDArray[np.float32]
    start_ms: NDArray[np.int64]  # of the best stretch
    end_ms: NDArray[np.int64]
    is_gained: NDArray[np.bool_]  # did not match before
    lost_ids: NDArray[np.bytes_]

    @property
    def gained_ids(self) -> NDArray[np.bytes_]:
        return self.ids[self.is_gained]

    def page(self, change: str | None, *, after_id: str | None, limit: int) -> tuple[list[MatchedVideo], bool]:
        """Of all that match, or those that were ``gained`` or ``lost``; and whether there are more."""
        ids = self.lost_ids if change == "lost" else self.ids
        start = 0
        if after_id is not None and is_id(after_id, VIDEO_PREFIX):
            start = int(np.searchsorted(ids, np.array(pack_id(after_id), ID_TYPE), side="right"))
        if change == "lost":
            lost = texts_of(ids[start : start + limit])
            return [MatchedVideo(video_id, None, None, None, "lost") for video_id in lost], start + limit < len(ids)
        rows = np.arange(start, min(start + limit + 1, len(ids)))
        if change == "gained":
            rows = self._gained_rows(start, limit + 1)
        shown = rows[:limit]
        videos = [
            MatchedVideo(
                video_id,
                float(self.scores[row]),
                int(self.start_ms[row]),
                int(self.end_ms[row]),
                "gained" if self.is_gained[row] else None,
            )
            for video_id, row in zip(texts_of(ids[shown]), shown.tolist(), strict=True)
        ]
        return videos, len(rows) > limit

    def _gained_rows(self, start: int, num: int) -> NDArray[np.intp]:
        """The first ``num`` from ``start`` on."""
        found = [np.empty(0, np.intp)]
        num_found = 0
        for at in range(start, len(self.ids), _CHUNK):
            rows = at + np.flatnonzero(self.is_gained[at : at + _CHUNK])
            found.append(rows)
            num_found += len(rows)
            if num_found >= num:
                break
        return np.concatenate(found)[:num]

    @classmethod
    def none(cls) -> MatchedVideos:
        ids, times = np.empty(0, ID_TYPE), np.empty(0, np.int64)
        return cls(ids, np.empty(0, np.float32), times, times, np.empty(0, np.bool_), ids)


class MatchFiles:
    """Reads files, and each of them whole once, for its checksum. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checked: LRUCache[Path, tuple[int, int, int]] = LRUCache(_MAX_CHECKED)

    def read(self, path: Path) -> MatchedVideos:
        """Raises OSError, ValueError."""
        with path.open("rb") as file:
            head, facts = file.read(_HEAD.size), os.fstat(file.fileno())
            if len(head) < _HEAD.size:
                raise ValueError("it has no header")
            magic, num_matched, num_lost, crc = _HEAD.unpack(head)
            columns = _columns(num_matched, num_lost)
            if magic != _MAGIC or sum(kind.itemsize * num for kind, num in columns) != facts.st_size - _HEAD.size:
                raise ValueError("its header does not fit it")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        version = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        with self._lock:
            is_checked = self._checked.get(path) == version
        if not is_checked:
            if zlib.crc32(memoryview(content)[_HEAD.size :]) != crc:
                raise ValueError("it has another checksum")
            with self._lock:
                self._checked[path] = version
        found, start = [], _HEAD.size
        for kind, num in columns:
            found.append(np.frombuffer(content, kind, num, start))
            start += kind.itemsize * num
        return MatchedVideos(*found)


def save(path: Path, videos: MatchedVideos) -> None:
    """Magic, numbers of matched and lost videos, CRC-32 of the columns, and these: little-endian.

    Durable on return. Raises StorageFull, OSError.
    """
    columns: Sequence[NDArray[Any]] = (
        *(videos.ids, videos.scores, videos.start_ms, videos.end_ms, videos.is_gained, videos.lost_ids),
    )
    types = _columns(len(videos.ids), len(videos.lost_ids))
    content = b"".join(column.astype(kind).tobytes() for column, (kind, _) in zip(columns, types, strict=True))
    head = _HEAD.pack(_MAGIC, len(videos.ids), len(videos.lost_ids), zlib.crc32(content))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_atomically(path, is_shared=True, is_synced=True) as temporary, temporary.open("wb") as file:
            file.write(head)
            file.write(content)
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise StorageFull(internal=repr(error)) from error
        raise


def texts_of(packed_ids: NDArray[np.bytes_]) -> list[str]:
    return [unpack_id(raw.ljust(PACKED_ID_BYTES, b"\0")) for raw in packed_ids.tolist()]  # numpy drops zeros at the end


def _columns(num_matched: int, num_lost: int) -> list[tuple[np.dtype[Any], int]]:
    return [
        (ID_TYPE, num_matched),
        (np.dtype("<f4"), num_matched),
        (np.dtype("<i8"), num_matched),
        (np.dtype("<i8"), num_matched),
        (np.dtype("?"), num_matched),
        (ID_TYPE, num_lost),
    ]
