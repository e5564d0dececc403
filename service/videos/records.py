"""Kept videos: features, facts and where they come from, never the video itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

VIDEO_PREFIX = "vid"  # of ids, see ids.py


@dataclass(frozen=True)
class KeptSegment:
    start_ms: int
    end_ms: int


@dataclass(frozen=True, kw_only=True)
class NewKeptVideo:
    """``sampling`` is JSON of all that decides which frames were used: equal content and sampling are one video."""

    namespace: str
    client: str
    sha256: str
    sampling: Mapping[str, Any]
    facts: Mapping[str, Any]  # duration_ms, start_ms, width, height, fps, codec, bytes
    receipt: Mapping[str, Any]  # of the encoding: decoder, encoder, model id, frame policy, frames
    uri: str | None = None  # from which the video can be read again
    client_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    keep_seconds: float | None = None  # None: the service's default


@dataclass(frozen=True)
class KeptThumbnail:
    """A picture of a stretch, at its peak."""

    start_ms: int
    end_ms: int
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class NewThumbnail(KeptThumbnail):
    jpeg: bytes


@dataclass(frozen=True, kw_only=True)
class KeptVideo(NewKeptVideo):
    id: str
    created_at_ms: int
    updated_at_ms: int
    expires_at_ms: int | None
    num_bytes: int  # of all generations, records included
    generations: Mapping[str, int]  # encoder fingerprint -> number of segments
    thumbnails: Sequence[KeptThumbnail] = ()


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    segments: Sequence[KeptSegment]  # S
    vectors: NDArray[np.float16]  # [S, D], unit length but for rounding


@dataclass(frozen=True, eq=False)
class FeatureBlock:
    """Of n segments in the order of their videos. ``video_rows`` counts the videos of the table."""

    vectors: NDArray[np.float16]  # [n, D]
    video_rows: NDArray[np.int64]  # [n], not decreasing
    start_ms: NDArray[np.int64]  # [n]
    end_ms: NDArray[np.int64]  # [n]


class FeatureTable(Protocol):
    """All features of one namespace and encoder at one moment; what is added or removed later does not change it."""

    @property
    def num_videos(self) -> int: ...

    @property
    def num_segments(self) -> int: ...

    @property
    def revision(self) -> str:
        """Changes with every video that is added or removed."""
        ...

    def blocks(self, max_segments: int = 65_536) -> Iterator[FeatureBlock]: ...

    def take(self, segment_rows: NDArray[np.int64]) -> FeatureBlock:
        """Of these segments, ascending, which are counted as ``blocks`` yields them. Fast for a few hundred."""
        ...

    def video_ids(self, video_rows: Sequence[int]) -> list[str]: ...

    def packed_ids(self, video_rows: NDArray[np.int64] | None = None) -> NDArray[np.bytes_]:
        """Ids as in keys.py, [n] of S15; of all videos by default."""
        ...

    def contains(self, packed_ids: Sequence[bytes] | NDArray[np.bytes_]) -> NDArray[np.bool_]: ...
