"""All features of one namespace and encoder at one moment, as views of the files wherever rows lie together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.videos.keys import unpack_id
from vidlex.service.videos.parts.files import Rows
from vidlex.service.videos.records import FeatureBlock

_MIN_VIEW_ROWS = 1024  # runs of fewer rows between dead ones are copied together


@dataclass(frozen=True, eq=False)
class TablePart:
    """What counts of a part: V videos in the order of their rows."""

    part: str
    path: Path
    rows: Rows  # the file
    num_entries: int  # dead ones too
    num_kills: int
    ids: NDArray[np.uint8]  # [V, 15]
    first_rows: NDArray[np.int64]  # [V]
    num_rows: NDArray[np.int64]  # [V]

    @classmethod
    def of(cls, part: str, path: Path, rows: Rows, entries: NDArray[np.void], kills: NDArray[np.uint32]) -> TablePart:
        alive: NDArray[Any] = entries
        if len(kills):
            is_alive = np.ones(len(entries), bool)
            is_alive[kills[kills < len(entries)]] = False
            alive = entries[is_alive]
        first_rows = alive["row"].astype(np.int64)
        if (np.diff(first_rows) < 0).any():
            alive = alive[np.argsort(first_rows, kind="stable")]
            first_rows = alive["row"].astype(np.int64)
        ids, num_rows = np.ascontiguousarray(alive["id"]), alive["num_rows"].astype(np.int64)
        return cls(part, path, rows, len(entries), len(kills), ids, first_rows, num_rows)

    @property
    def num_videos(self) -> int:
        return len(self.first_rows)

    @cached_property
    def num_segments(self) -> int:
        return int(self.num_rows.sum())

    @property
    def num_bytes(self) -> int:
        """With the cached properties, without the file."""
        return 31 * self.num_videos + 8 * self.num_segments

    @cached_property
    def min_file_rows(self) -> int:
        return int((self.first_rows + self.num_rows).max(initial=0))

    @cached_property
    def first_segments(self) -> NDArray[np.int64]:
        return np.cumsum(self.num_rows) - self.num_rows

    @cached_property
    def video_of_segment(self) -> NDArray[np.int32]:
        numbers: NDArray[np.int32] = np.arange(self.num_videos, dtype=np.int32)
        return np.repeat(numbers, self.num_rows)

    @cached_property
    def row_of_segment(self) -> NDArray[np.int32]:
        """In the file."""
        starts = np.cumsum(self.num_rows) - self.num_rows
        offset: NDArray[np.int32] = (self.first_rows - starts).astype(np.int32)
        numbers: NDArray[np.int32] = np.arange(self.num_segments, dtype=np.int32)
        return np.repeat(offset, self.num_rows) + numbers

    @cached_property
    def pieces(self) -> list[tuple[int, int, bool]]:
        """(start, stop, whether their rows lie together) of segments."""
        breaks = np.flatnonzero(np.diff(self.row_of_segment) != 1) + 1
        pieces: list[tuple[int, int, bool]] = []
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), self.num_segments], strict=True):
            is_view = stop - start >= _MIN_VIEW_ROWS
            if pieces and not is_view and not pieces[-1][2]:
                pieces[-1] = (pieces[-1][0], stop, False)
            elif stop > start:
                pieces.append((start, stop, is_view))
        return pieces


class KeptTable:
    """A ``FeatureTable``. Thread-safe. ``damaged`` names the parts whose videos are missing here."""

    def __init__(self, history: str | None, parts: Sequence[TablePart], damaged: Sequence[str] = ()) -> None:
        self.parts = parts
        self.damaged = damaged
        videos, segments = [part.num_videos for part in parts], [part.num_segments for part in parts]
        self._first_videos = np.cumsum([0, *videos])
        self._first_segments = np.cumsum([0, *segments])
        state = [history, [(part.part, part.num_entries, part.num_kills) for part in parts]]
        self._revision = hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()

    @property
    def num_videos(self) -> int:
        return int(self._first_videos[-1])

    @property
    def num_segments(self) -> int:
        return int(self._first_segments[-1])

    @property
    def revision(self) -> str:
        return self._revision

    def blocks(self, max_segments: int = 65_536) -> Iterator[FeatureBlock]:
        for index, part in enumerate(self.parts):
            for start, stop, is_view in part.pieces:
                for at in range(start, stop, max_segments):
                    yield self._block(index, np.arange(at, min(at + max_segments, stop)), is_view=is_view)

    def take(self, segment_rows: NDArray[np.int64]) -> FeatureBlock:
        wanted = np.asarray(segment_rows, np.int64)
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= self.num_segments or (np.diff(wanted) < 0).any()):
            raise IndexError("segments must ascend, and be segments of the table")
        cuts = np.searchsorted(wanted, self._first_segments)
        found = [
            self._block(i, wanted[cuts[i] : cuts[i + 1]] - self._first_segments[i])
            for i in range(len(self.parts))
            if cuts[i + 1] > cuts[i]
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            dim = self.parts[0].rows["vector"].shape[1] if self.parts else 0
            nothing = np.zeros(0, np.int64)
            return FeatureBlock(np.zeros((0, dim), np.float16), nothing, nothing, nothing)
        return FeatureBlock(
            np.concatenate([block.vectors for block in found]),
            np.concatenate([block.video_rows for block in found]),
            np.concatenate([block.start_ms for block in found]),
            np.concatenate([block.end_ms for block in found]),
        )

    def video_ids(self, video_rows: Sequence[int]) -> list[str]:
        ids = []
        for row in video_rows:
            if not 0 <= row < self.num_videos:
                raise IndexError(f"no video {row} of {self.num_videos}")
            index = int(np.searchsorted(self._first_videos, row, "right")) - 1
            ids.append(unpack_id(self.parts[index].ids[row - self._first_videos[index]].tobytes()))
        return ids

    def segments_of_video(self, video_row: int) -> tuple[int, int]:
        """Its first segment and the one after its last one."""
        index = int(np.searchsorted(self._first_videos, video_row, "right")) - 1
        part, row = self.parts[index], video_row - int(self._first_videos[index])
        start = int(self._first_segments[index] + part.first_segments[row])
        return start, start + int(part.num_rows[row])

    def packed_ids(self, video_rows: NDArray[np.int64] | None = None) -> NDArray[np.bytes_]:
        ids = np.concatenate([np.zeros(0, "S15"), *(part.ids.view("S15")[:, 0] for part in self.parts)])
        return ids if video_rows is None else ids[video_rows]

    def contains(self, packed_ids: Sequence[bytes] | NDArray[np.bytes_]) -> NDArray[np.bool_]:
        wanted, known = np.array(packed_ids, "S15"), self._sorted_ids
        if not len(known):
            return np.zeros(len(wanted), bool)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.asarray(known[at] == wanted)

    @cached_property
    def _sorted_ids(self) -> NDArray[np.bytes_]:
        return np.sort(self.packed_ids())

    def _block(self, index: int, segments: NDArray[np.int64], *, is_view: bool = False) -> FeatureBlock:
        part = self.parts[index]
        file_rows = part.row_of_segment[segments]
        where = slice(int(file_rows[0]), int(file_rows[-1]) + 1) if is_view else file_rows
        rows = part.rows
        return FeatureBlock(
            rows["vector"][where],
            part.video_of_segment[segments] + self._first_videos[index],
            rows["start_ms"][where],
            rows["end_ms"][where],
        )
