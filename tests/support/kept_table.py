"""Kept features in memory, in place of those in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.service.videos.keys import pack_id
from vidlex.service.videos.records import FeatureBlock, KeptFeatures, KeptSegment


def video_id(number: int) -> str:
    return f"vid_{number:024d}"


@dataclass(frozen=True, eq=False)
class MemoryTable:
    """``features``: of each video. A FeatureTable."""

    features: Sequence[KeptFeatures]
    ids: Sequence[str]
    revision: str = "1"

    @classmethod
    def of(cls, features: Sequence[KeptFeatures]) -> MemoryTable:
        return cls(features, [video_id(number) for number in range(len(features))])

    @property
    def num_videos(self) -> int:
        return len(self.features)

    @property
    def num_segments(self) -> int:
        return sum(len(video.segments) for video in self.features)

    def _whole(self) -> FeatureBlock:
        segments = [segment for video in self.features for segment in video.segments]
        return FeatureBlock(
            np.concatenate([video.vectors for video in self.features]),
            np.repeat(np.arange(len(self.features)), [len(video.segments) for video in self.features]),
            np.array([segment.start_ms for segment in segments], np.int64),
            np.array([segment.end_ms for segment in segments], np.int64),
        )

    def blocks(self, max_segments: int = 65_536) -> Iterator[FeatureBlock]:
        if self.features:
            whole = self._whole()
            for start in range(0, len(whole.video_rows), max_segments):
                yield part_of(whole, np.arange(start, min(start + max_segments, len(whole.video_rows))))

    def take(self, segment_rows: NDArray[np.int64]) -> FeatureBlock:
        return part_of(self._whole(), segment_rows)

    def video_ids(self, video_rows: Sequence[int]) -> list[str]:
        return [self.ids[row] for row in video_rows]

    def packed_ids(self, video_rows: NDArray[np.int64] | None = None) -> NDArray[np.bytes_]:
        ids = np.array(list(map(pack_id, self.ids)), "S15")
        return ids if video_rows is None else ids[video_rows]

    def contains(self, packed_ids: Sequence[bytes] | NDArray[np.bytes_]) -> NDArray[np.bool_]:
        return np.isin(np.asarray(packed_ids, "S15"), self.packed_ids())


def part_of(block: FeatureBlock, rows: NDArray[np.int64]) -> FeatureBlock:
    return FeatureBlock(block.vectors[rows], block.video_rows[rows], block.start_ms[rows], block.end_ms[rows])


def random_features(
    num_videos: int, dim: int, seed: int = 0, *, max_segments: int = 9, near: NDArray[np.float32] | None = None
) -> list[KeptFeatures]:
    """Unit vectors; with ``near`` [V, D] each is at a random cosine to one of them. There are gaps between segments."""
    rng = np.random.default_rng(seed)
    videos = []
    for _ in range(num_videos):
        num = int(rng.integers(1, max_segments + 1))
        vectors = rng.standard_normal((num, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if near is not None:
            cosines = rng.uniform(0, 1, (num, 1)).astype(np.float32)
            sides = np.sqrt(1 - cosines**2).astype(np.float32)
            vectors = cosines * near[rng.integers(0, len(near), num)] + sides * vectors
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        starts = np.cumsum(rng.integers(1, 3, num)) * 1000
        segments = [KeptSegment(int(start), int(start) + 1000) for start in starts]
        videos.append(KeptFeatures(segments, vectors.astype(np.float16)))
    return videos
