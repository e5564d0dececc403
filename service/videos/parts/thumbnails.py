"""Small pictures of the stretches in which labels apply, on request: a file per video, named in its record."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.service.classification.matching import ScoredLabel
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.videos.keys import new_part
from vidlex.service.videos.parts import files
from vidlex.service.videos.parts.files import PartDamaged
from vidlex.service.videos.records import KeptThumbnail, NewThumbnail
from vidlex.service.videos.space import Space

MAX_THUMBNAILS = 16
THUMBNAIL_PIXELS = 192
"""Of the long side."""
_JPEG_QUALITY = 80

FramesAt = Callable[[Sequence[int], int], Sequence[NDArray[np.uint8] | None]]
"""(times in ms, pixels of the long side) -> an RGB picture [H, W, 3] each; None where there is none."""


@dataclass(frozen=True)
class ThumbnailFile:
    """``token`` names it. Of each picture: its times, offset, size and CRC-32."""

    token: str
    entries: tuple[tuple[int, int, int, int, int, int], ...]
    content: bytes

    @classmethod
    def of(cls, thumbnails: Sequence[NewThumbnail]) -> ThumbnailFile:
        entries, offset = [], 0
        for thumbnail in thumbnails:
            times = (thumbnail.start_ms, thumbnail.end_ms, thumbnail.at_ms)
            entries.append((*times, offset, len(thumbnail.jpeg), zlib.crc32(thumbnail.jpeg)))
            offset += len(thumbnail.jpeg)
        return cls(new_part(), tuple(entries), b"".join(thumbnail.jpeg for thumbnail in thumbnails))


def path_of(space: Space, token: str) -> Path:
    return space.root / space.namespace / "thumbnails" / token[:2] / f"{token}.jpegs"


def retired_name(space: Space, token: str) -> str:
    return str(path_of(space, token).relative_to(space.root))


def write(space: Space, file: ThumbnailFile) -> None:
    """Durable on return. Until a record names it, the file is one of those that go.

    Raises StorageFull, StoreUnavailable.
    """
    with store_errors():
        now_ms = store_now_ms(space.client)
        space.client.zadd(space.keys.retired, {retired_name(space, file.token): now_ms})
    files.write_whole(path_of(space, file.token), file.content)


def read(space: Space, token: str, entry: Sequence[int]) -> bytes:
    """Raises PartDamaged."""
    offset, size, crc = entry[3:6]
    try:
        handle = os.open(path_of(space, token), os.O_RDONLY | os.O_CLOEXEC)
        try:
            jpeg = os.pread(handle, size, offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise PartDamaged(f"{token}: {error}") from error
    if len(jpeg) != size or zlib.crc32(jpeg) != crc:
        raise PartDamaged(f"{token} is too short, or has another checksum")
    return jpeg


def thumbnails_of(labels: Sequence[ScoredLabel], frames_at: FramesAt) -> list[NewThumbnail]:
    """In the order of time: of the stretches that score highest, one where several labels peak at the same time."""
    stretches = [stretch for label in labels if label.matched for stretch in label.stretches]
    best: dict[int, KeptThumbnail] = {}
    for stretch in sorted(stretches, key=lambda stretch: -stretch.score):
        if len(best) < MAX_THUMBNAILS:
            best.setdefault(stretch.peak_ms, KeptThumbnail(stretch.start_ms, stretch.end_ms, stretch.peak_ms))
    chosen = [best[time_ms] for time_ms in sorted(best)]
    pictures = frames_at([thumbnail.at_ms for thumbnail in chosen], THUMBNAIL_PIXELS) if chosen else []
    return [
        NewThumbnail(**asdict(thumbnail), jpeg=_jpeg(picture))
        for thumbnail, picture in zip(chosen, pictures, strict=True)
        if picture is not None
    ]


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
