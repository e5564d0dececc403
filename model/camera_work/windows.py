"""Windows cut out of real videos, moved so that the camera work is exactly known.

The videos must be of fixed cameras. What moves in them by itself is not labelled: an object label that a pasted object
does not have is unknown, except in windows over one frame of a video, where time stands still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vidlex.model.camera_work.labels import COLUMN, MOTION_KEYS
from vidlex.model.camera_work.photos import MAX_OBJECTS, MAX_SHOTS, cut_ellipse, detail_of
from vidlex.model.camera_work.random_scenes import SceneConfig, SourceSize, random_scene
from vidlex.model.camera_work.render import Material, make_object, make_source, render
from vidlex.model.camera_work.truth import Truth, label_scene

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov")
OBJECT_KEYS = ("moving_left", "moving_right", "moving_up", "moving_down", "approaching", "receding")
MAX_HEIGHT = 480  # of the videos' frames
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0  # of a video that a window covers
FROZEN_SHARE = 0.35  # of the windows: over one frame of each video
MAX_TRIES = 400  # of drawing a scene that has a certain label


@dataclass(frozen=True, eq=False)
class Window:
    frames: NDArray[np.uint8]  # [T, size, size, 3]
    truth: Truth
    sought: str  # the label that the scene was drawn for


@dataclass(frozen=True, eq=False)
class RealVideo:
    frames: NDArray[np.uint8]  # [n, h, w, 3]
    frames_per_second: float


def read_real_videos(folder: Path, max_frames: int = 240) -> list[RealVideo]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_ENDINGS)
    if not paths:
        raise FileNotFoundError(f"no video in {folder}")
    return [_read(path, max_frames) for path in paths]


def _read(path: Path, max_frames: int) -> RealVideo:
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 25)
        for frame in container.decode(stream):
            picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
            if picture.height > MAX_HEIGHT:
                picture = picture.resize((round(picture.width * MAX_HEIGHT / picture.height), MAX_HEIGHT))
            frames.append(np.asarray(picture))
            if len(frames) == max_frames:
                break
    return RealVideo(np.stack(frames), rate)


def draw_windows(
    videos: Sequence[RealVideo],
    *,
    num_windows: int,
    num_frames: int,
    image_size: int,
    seed: int = 0,
    keys: Sequence[str] = MOTION_KEYS,
) -> Iterator[Window]:
    """Each label is sought in turn, so that every label is present in some of the windows."""
    for index in range(num_windows):
        yield _draw_window(
            np.random.default_rng((seed, index)), videos, num_frames, image_size, keys[index % len(keys)]
        )


def _draw_window(
    rng: np.random.Generator, videos: Sequence[RealVideo], num_frames: int, image_size: int, sought: str
) -> Window:
    chosen = [videos[i] for i in rng.integers(0, len(videos), MAX_SHOTS)]
    sizes = [SourceSize(video.frames.shape[2], video.frames.shape[1]) for video in chosen]
    is_frozen = bool(rng.random() < FROZEN_SHARE)
    config = SceneConfig(num_frames=num_frames, keep_inside=True)
    detail = [detail_of(video.frames[0]) for video in chosen]
    for _ in range(MAX_TRIES):
        scene = random_scene(rng, sizes, MAX_OBJECTS, config, detail)
        truth = label_scene(scene)
        if truth.present[COLUMN[sought]] and truth.known[COLUMN[sought]]:
            break
    if not is_frozen:
        for key in OBJECT_KEYS:
            truth.known[COLUMN[key]] &= truth.present[COLUMN[key]]
    sources = [make_source(_moments(rng, video, num_frames, is_frozen)) for video in chosen]
    material = Material(sources, [_draw_object(rng, videos) for _ in range(MAX_OBJECTS)])
    return Window(render(scene, material, image_size), truth, sought)


def _moments(
    rng: np.random.Generator, video: RealVideo, num_frames: int, is_frozen: bool
) -> NDArray[np.uint8]:  # [num_frames or 1, h, w, 3]
    n = len(video.frames)
    length = min(n, int(rng.uniform(MIN_SECONDS, MAX_SECONDS) * video.frames_per_second) + 1)
    first = rng.integers(0, n - length + 1)
    indices = first + (2 * np.arange(num_frames) + 1) * length // (2 * num_frames)
    return np.asarray(video.frames[indices[:1] if is_frozen else indices])


def _draw_object(rng: np.random.Generator, videos: Sequence[RealVideo]) -> Tensor:
    video = videos[int(rng.integers(len(videos)))]
    return make_object(cut_ellipse(rng, video.frames[rng.integers(len(video.frames))]))
