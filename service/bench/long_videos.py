"""Long videos of short shots, in one of which alone something can be seen; for `vidlex bench long`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.frame_content import FrameContentDetector
from vidlex.service.bench.harness import BenchError

WIDTH, HEIGHT, FPS = 256, 192, 10
_MIN_SHOT_SECONDS = 0.9
_MAX_SHOT_FRAMES = 8 * FPS
NUM_VARIANTS = 3  # of each shot, in framing and light
_SHOT_SECONDS = (3.0, 20.0)  # shortest and longest


@dataclass(frozen=True, eq=False)
class Shot:
    """Pictures [n, HEIGHT, WIDTH, 3] at FPS of one shot, with what it may show."""

    name: str
    labels: tuple[str, ...]
    pictures: NDArray[np.uint8]

    @cached_property
    def variants(self) -> tuple[tuple[Any, ...], ...]:
        """The same shot as av.VideoFrames: as it is, and cut closer, mirrored, lighter or darker."""
        found = []
        for number in range(NUM_VARIANTS):
            margin = 12 * number
            part = self.pictures[:, margin : HEIGHT - margin, margin : WIDTH - margin]
            part = part[:, :, ::-1] if number == 1 else part
            light = (1.0, 0.85, 1.15)[number]
            frames = []
            for picture in part:
                lit = np.clip(picture * light, 0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(lit), format="rgb24")
                frames.append(frame.reformat(WIDTH, HEIGHT, format="yuv420p"))
            found.append(tuple(frames))
        return tuple(found)

    def play(self, num_frames: int, *, variant: int, first: int = 0) -> Iterator[Any]:
        """Forwards and backwards as often as needed."""
        frames = self.variants[variant]
        period = max(1, 2 * len(frames) - 2)
        for number in range(first, first + num_frames):
            position = number % period
            yield frames[position if position < len(frames) else period - position]


def shots_of(path: Path, labels: Sequence[str]) -> list[Shot]:
    """The shots of a video, at most 8 s of each."""
    pictures: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time * FPS < len(pictures) - 1e-6:
                continue
            scale = max(WIDTH / frame.width, HEIGHT / frame.height)
            wide, high = round(frame.width * scale), round(frame.height * scale)
            picture = frame.reformat(wide, high, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
            top, left = (high - HEIGHT) // 2, (wide - WIDTH) // 2
            pictures.append(picture[top : top + HEIGHT, left : left + WIDTH])
    if not pictures:
        raise BenchError(f"{path} has no frames")
    all_pictures = np.stack(pictures)
    starts = np.flatnonzero(FrameContentDetector().add(all_pictures).starts_shot)
    parts = [part for part in np.split(all_pictures, starts[1:]) if len(part) >= _MIN_SHOT_SECONDS * FPS]
    return [
        Shot(f"{path.stem} {number}", tuple(labels), part[:_MAX_SHOT_FRAMES]) for number, part in enumerate(parts, 1)
    ]


def drawn_shots() -> list[Shot]:
    """Moving patterns, each in one colour of the model ``dummy``."""
    random = np.random.default_rng(0)
    found = []
    for name, colour in (("red", (1.0, 0.1, 0.1)), ("green", (0.1, 1.0, 0.1)), ("blue", (0.1, 0.1, 1.0))):
        ground = random.integers(40, 256, (HEIGHT // 8, WIDTH // 8, 1)).repeat(8, 0).repeat(8, 1)
        pictures = np.stack([np.roll(ground, 4 * number, 1) * colour for number in range(20)])
        found.append(Shot(name, (name,), pictures.astype(np.uint8)))
    return found


def write_shot(path: Path, shot: Shot, *, variant: int, seconds: float) -> Path:
    """The shot alone."""
    frames = shot.play(round(seconds * FPS), variant=variant)
    return _write(path, frames, keyframe_interval=250, cuts_are_keyframes=True)


def write_long_video(
    path: Path,
    scene: Shot,
    others: Sequence[Shot],
    *,
    variant: int,
    seconds: float,
    scene_seconds: float,
    seed: int,
) -> tuple[int, int]:
    """Shots of 3 to 20 s of ``others``, and once ``scene``, in its ``variant``. Returns when that is shown, in ms.

    With every second seed the video has no key frames at cuts.
    """
    random = np.random.default_rng(seed)
    num_frames, length = round(seconds * FPS), round(scene_seconds * FPS)
    start = int(random.integers(0, num_frames - length + 1))

    def frames() -> Iterator[Any]:
        done = 0
        while done < num_frames:
            if done == start:
                yield from scene.play(length, variant=variant)
                done += length
                continue
            stop = start if done < start else num_frames
            shot = others[int(random.integers(len(others)))]
            lasts = min(stop - done, round(random.uniform(*_SHOT_SECONDS) * FPS))
            first = int(random.integers(len(shot.pictures)))
            yield from shot.play(lasts, variant=int(random.integers(NUM_VARIANTS)), first=first)
            done += lasts

    _write(path, frames(), keyframe_interval=(250, 100)[seed % 2], cuts_are_keyframes=seed % 2 == 0)
    return 1000 * start // FPS, 1000 * (start + length) // FPS


def _write(path: Path, frames: Iterator[Any], *, keyframe_interval: int, cuts_are_keyframes: bool) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        parameters = f"keyint={keyframe_interval}:scenecut={40 if cuts_are_keyframes else 0}"
        stream.options = {"preset": "superfast", "crf": "28", "x264-params": parameters}
        for number, frame in enumerate(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
