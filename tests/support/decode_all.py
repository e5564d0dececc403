"""All frames of a file from a decode pool, as one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameBatch, FrameContent
from vidlex.service.decode.pool import DecodeJob, DecodePool


def decode_all(pool: DecodePool, path: Path, job: DecodeJob, *, wait_seconds: float = math.inf) -> FrameBatch:
    """Raises what `DecodePool.decode_chunks` raises."""
    with pool.decode_chunks(path, job, wait_seconds=wait_seconds) as stream:
        return _joined(stream)


def _joined(chunks: Iterator[FrameBatch]) -> FrameBatch:
    frames: list[NDArray[np.uint8]] = []
    times_ms: tuple[int, ...] = ()
    warnings: dict[str, str] = {}
    num_failed = 0
    contents: list[FrameContent] = []
    for chunk in chunks:
        frames.append(chunk.frames.copy())
        times_ms += chunk.timestamps_ms
        warnings |= chunk.warnings
        num_failed += chunk.num_failed
        contents += [] if chunk.content is None else [chunk.content]
        video = chunk.video
    content = None
    if len(contents) == len(frames):
        content = FrameContent(
            *(np.concatenate([getattr(part, f.name) for part in contents]) for f in fields(FrameContent))
        )
    return FrameBatch(np.concatenate(frames), times_ms, video, tuple(warnings.items()), num_failed, content)
