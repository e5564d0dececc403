"""FFmpeg's GIF against a composition of its frames in numpy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from fuzz.gif_files import CLEAR, KEEP, RESTORE, GifFrame, gif_file
from vidlex.model.decode.container import open_video
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.types import FrameGeometry

WHITE = 255
PALETTE = np.array([(10, 20, 30), (200, 30, 40), (20, 180, 60), (40, 60, 220)], np.uint8)


def composed(width: int, height: int, frames: list[GifFrame], background: int) -> list[NDArray[np.uint8]]:
    """[H, W, 3] of each frame. What is cleared has the background's colour, as GIF89a says; after a frame that has
    transparent parts it is transparent, as in browsers, and shown white."""

    def cleared(frame: GifFrame) -> NDArray[np.uint8]:
        return PALETTE[background] if frame.transparent is None else np.full(3, WHITE, np.uint8)

    canvas = np.tile(cleared(frames[0]), (height, width, 1))
    shown = []
    for frame in frames:
        before = canvas.copy()
        rows = slice(frame.top, frame.top + frame.indices.shape[0])
        columns = slice(frame.left, frame.left + frame.indices.shape[1])
        colours = (PALETTE if frame.palette is None else frame.palette)[frame.indices]
        is_drawn = (
            np.full(frame.indices.shape, True) if frame.transparent is None else frame.indices != frame.transparent
        )
        canvas[rows, columns] = np.where(is_drawn[..., None], colours, canvas[rows, columns])
        shown.append(canvas.copy())
        if frame.disposal == CLEAR:
            canvas[rows, columns] = cleared(frame)
        elif frame.disposal == RESTORE:
            canvas = before
    return shown


def by_ffmpeg(path: Path) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """(pictures [H, W, 3], their times in milliseconds)"""
    with open_video(path, "gif") as container:
        decoded = list(container.decode(video=0))
    pictures = [np.asarray(frame.to_ndarray(format="rgb24")) for frame in decoded]
    return pictures, [round(float(frame.pts * frame.time_base) * 1000) for frame in decoded]


def delays_by_pillow(data: bytes) -> list[int]:
    with Image.open(io.BytesIO(data)) as image:
        return [int(frame.info.get("duration", 0)) for frame in ImageSequence.Iterator(image)]


def random_frame(rng: np.random.Generator, width: int, height: int) -> GifFrame:
    left, top = int(rng.integers(width)), int(rng.integers(height))
    size = (int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)))
    own = rng.integers(0, 256, (8, 3), dtype=np.uint8) if rng.random() < 0.4 else None
    return GifFrame(
        rng.integers(0, 8 if own is not None else 4, size, dtype=np.uint8),
        left,
        top,
        delay=int(rng.integers(2, 50)),
        disposal=int(rng.choice([0, KEEP, CLEAR, RESTORE])),
        transparent=int(rng.integers(4)) if rng.random() < 0.7 else None,
        palette=own,
        is_interlaced=bool(rng.integers(2)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_pictures_are_composed_as_the_format_says(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(2, 40)), int(rng.integers(2, 40))
    whole = GifFrame(rng.integers(0, 4, (height, width), dtype=np.uint8))
    frames = [whole, *(random_frame(rng, width, height) for _ in range(12))]
    if seed % 2:  # a first frame that does not cover the canvas
        frames = frames[1:]
    background = int(rng.integers(4))
    data = gif_file(width, height, PALETTE, frames, loops=int(rng.integers(3)), background=background)
    (tmp_path / "a.gif").write_bytes(data)
    pictures, times = by_ffmpeg(tmp_path / "a.gif")
    delays = [frame.delay * 10 for frame in frames]
    assert times == [sum(delays[:k]) for k in range(len(frames))]
    assert delays_by_pillow(data) == delays
    for k, (picture, wanted) in enumerate(zip(pictures, composed(width, height, frames, background), strict=True)):
        np.testing.assert_array_equal(picture, wanted, err_msg=f"frame {k}")


def test_an_animation_that_pillow_wrote(tmp_path: Path) -> None:
    """Pillow stores what has changed, with transparent parts."""
    rows = np.arange(48)[:, None] * np.ones(64, int)
    pictures = [Image.fromarray(np.uint8((rows // 8 + k) % 6 * 40)) for k in range(8)]
    pictures += [Image.fromarray(np.uint8(np.where(rows < 20, 250, np.array(pictures[-1]))))]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=80)
    found, times = by_ffmpeg(tmp_path / "a.gif")
    assert times == [80 * k for k in range(9)]
    for picture, wanted in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(picture, np.array(wanted.convert("RGB")))


def grey(index: int, **options: Any) -> GifFrame:
    return GifFrame(np.full((32, 32), index, np.uint8), **options)


GREYS = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 3, axis=1)


def test_a_delay_of_none_counts_as_100_ms(tmp_path: Path) -> None:
    frames = [grey(k, delay=delay) for k, delay in enumerate((0, 1, 2, 5, 0, 100))]
    (tmp_path / "a.gif").write_bytes(gif_file(32, 32, GREYS, frames))
    batch = decode_frames(tmp_path / "a.gif", geometry=FrameGeometry(16), num_frames=128)
    starts = {
        int(frame[0, 0, 0]) // 16: time
        for frame, time in reversed(list(zip(batch.frames, batch.timestamps_ms, strict=True)))
    }
    assert starts == {0: 0, 1: 100, 2: 110, 3: 130, 4: 180, 5: 280}
    assert batch.video.duration_ms == 1280


@pytest.mark.parametrize("loops", [None, 0, 1, 7])
def test_an_animation_is_played_once(tmp_path: Path, loops: int | None) -> None:
    frames = [grey(k, delay=10) for k in range(10)]
    (tmp_path / "a.gif").write_bytes(gif_file(32, 32, GREYS, frames, loops=loops))
    batch = decode_frames(tmp_path / "a.gif", geometry=FrameGeometry(16), num_frames=10)
    assert batch.video.duration_ms == 1000
    assert batch.video.num_frames == 10
    assert [int(frame[0, 0, 0]) // 16 for frame in batch.frames] == list(range(10))


def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(gif_file(32, 32, GREYS, [grey(9, delay=0)], loops=None))
    batch = decode_frames(tmp_path / "a.gif", geometry=FrameGeometry(16), num_frames=4)
    assert batch.video.num_frames == 1
    assert (batch.frames == 9 * 16).all()
    assert batch.video.duration_ms == 100
