"""Small pictures of videos. The file is decoded in a process of a decode pool; only raw frames come back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.model.types import FrameGeometry, VideoInfo
from vidlex.service.bulk.local.opening import quiet_logs
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.errors import VidlexError

SIDE = 160  # the longer one, in pixels
_MAX_WORKERS = 4
_QUALITY = 80


def thumbnails(paths: Sequence[Path]) -> list[bytes | None]:
    """A JPEG of the middle of each video; None where there is no picture. Blocks."""
    if not paths:
        return []
    quiet_logs()
    num_workers = min(_MAX_WORKERS, len(paths))
    with DecodePool(num_workers, PoolLimits(timeout_seconds=20.0)) as pool, ThreadPoolExecutor(num_workers) as threads:
        return list(threads.map(lambda path: _thumbnail(pool, path), paths))


def _thumbnail(pool: DecodePool, path: Path) -> bytes | None:
    job = DecodeJob(FrameGeometry(SIDE, "longest"), num_frames=1)
    try:
        with path.open("rb"):
            pass
        with pool.decode_chunks(path, job) as chunks:
            for chunk in chunks:
                return _jpeg(_without_bars(chunk.frames[0], chunk.video))
    except (VidlexError, OSError):
        pass
    return None


def _without_bars(frame: NDArray[np.uint8], video: VideoInfo) -> NDArray[np.uint8]:
    longest = max(video.width, video.height, 1)
    height, width = (max(1, round(SIDE * side / longest)) for side in (video.height, video.width))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    return frame[top : top + height, left : left + width]


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
