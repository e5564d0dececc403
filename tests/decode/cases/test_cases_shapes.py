"""Pixels that are not square, and pictures that are shown turned or mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.video_cases import WHOLE, assert_like_ffmpeg, decode, ffmpeg, shown_by_ffmpeg
from support.video_cases_files import HEIGHT, WIDTH, Clips
from support.video_cases_mp4 import ORIENTATIONS, with_matrix
from support.videos import corner_names, write_corner_video, write_video
from vidlex.model.types import FrameGeometry, ResizeMode

RATIOS = {"3:2": 144, "8:9": 85, "16:11": 140, "1:1": 96, "4:3": 128, "12:11": 105, "64:45": 137, "1:2": 48}


@pytest.mark.parametrize(
    ("suffix", "ratio"),
    [*((".mp4", ratio) for ratio in RATIOS), *((suffix, "3:2") for suffix in (".mkv", ".ts", ".avi", ".flv"))],
)
def test_pixels_of_other_shapes_in_the_bit_stream(clips: Clips, suffix: str, ratio: str) -> None:
    path = clips.clip(suffix, seconds=1, b_frames=0 if suffix == ".avi" else 2, x264=f"sar={ratio}".replace(":", "/"))
    batch = assert_like_ffmpeg(path)
    assert (batch.video.width, batch.video.height) == (RATIOS[ratio], HEIGHT)


@pytest.mark.parametrize(("aspect", "width"), [("16:9", 114), ("4:3", 85), ("47:20", 150)])
@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("libx264", ".mkv"), ("libvpx", ".webm")])
def test_pixels_of_other_shapes_in_the_container(
    clips: Clips, aspect: str, width: int, codec: str, suffix: str
) -> None:
    source = clips.clip(suffix, codec=codec, seconds=1)
    batch = assert_like_ffmpeg(clips.copied(source, suffix, after=("-aspect", aspect)))
    assert abs(batch.video.width - width) <= 1


@pytest.mark.parametrize(("ratio", "stream"), [("1:1", "3:2"), ("3:2", "1:1"), ("4:3", "16:11")])
def test_container_and_bit_stream_disagree(clips: Clips, ratio: str, stream: str) -> None:
    source = clips.clip(".mp4", seconds=1, x264=f"sar={stream}".replace(":", "/"))
    across, down = (int(part) for part in ratio.split(":"))
    assert_like_ffmpeg(clips.copied(source, ".mp4", after=("-aspect", f"{WIDTH * across}:{HEIGHT * down}")))


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_a_dvd(clips: Clips, suffix: str) -> None:
    """MPEG-2 stores the shape of the whole picture."""
    source = clips.clip(".ts", codec="mpeg2video", seconds=1)
    path = clips.path(suffix)
    ffmpeg("-i", source, "-c:v", "mpeg2video", "-q:v", "2", "-aspect", "16:9", path)
    assert_like_ffmpeg(path)


@pytest.mark.parametrize("ratio", ["1:65535", "65535:1", "1:200", "200:1"])
def test_impossible_shapes(clips: Clips, ratio: str) -> None:
    """No player makes a line of a picture: such a ratio is ignored."""
    path = clips.clip(".mkv", seconds=1, x264=f"sar={ratio}".replace(":", "/"))
    truth = shown_by_ffmpeg(path)
    batch = decode(path)
    assert (batch.video.width, batch.video.height) == (WIDTH, HEIGHT)
    assert len(truth) == batch.video.num_frames


def test_pixels_are_square_in_the_frames(clips: Clips) -> None:
    """A box of 20 x 30 stored pixels of shape 3:2 is a square in every geometry that keeps shapes."""
    picture = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    picture[17:47, 38:58] = 235
    path = write_video(
        clips.path(".mp4"), width=WIDTH, height=HEIGHT, num_frames=5, picture=lambda _: picture,
        options={"x264-params": "sar=3/2", "crf": "10"},
    )  # fmt: skip
    modes: tuple[ResizeMode, ...] = ("shortest", "longest")
    for mode in modes:
        geometry = FrameGeometry(128, mode)
        frame = decode(path, 1, geometry=geometry).frames[0]
        width, height = box_size(frame)
        assert abs(width - height) <= 2, mode
        assert abs(width - 30 * 128 / (HEIGHT if mode == "shortest" else WIDTH * 3 / 2)) <= 2, mode


def box_size(frame: NDArray[np.uint8]) -> tuple[int, int]:
    bright = frame.mean(axis=2) > 128
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


# --- orientation -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corners(clips: Clips) -> Path:
    return write_corner_video(clips.path(".mp4"), width=WIDTH, height=HEIGHT)


def assert_upright(path: Path) -> None:
    truth = shown_by_ffmpeg(path)
    batch = decode(path, 2)
    assert (batch.video.width, batch.video.height) == (truth.width, truth.height)
    for frame in batch.frames:
        assert corner_names(frame) == corner_names(truth.first)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientations(clips: Clips, corners: Path, name: str) -> None:
    assert_upright(with_matrix(corners, clips.path(".mp4"), ORIENTATIONS[name]))


@pytest.mark.parametrize("name", ["clockwise", "mirrored", "transposed"])
def test_orientation_of_the_whole_movie(clips: Clips, corners: Path, name: str) -> None:
    assert_upright(with_matrix(corners, clips.path(".mp4"), ORIENTATIONS[name], kind=b"mvhd"))


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
@pytest.mark.parametrize("options", [("-display_rotation", "90"), ("-display_rotation", "180"), ("-display_hflip",)])
def test_orientations_in_other_containers(clips: Clips, corners: Path, suffix: str, options: tuple[str, ...]) -> None:
    assert_upright(clips.copied(corners, suffix, *options))


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
@pytest.mark.parametrize("orientation", ["rotate=90", "rotate=180", "flip=horizontal", "rotate=270:flip=vertical"])
def test_orientations_in_the_bit_stream(clips: Clips, corners: Path, suffix: str, orientation: str) -> None:
    filters = f"h264_metadata=display_orientation=insert:{orientation}"
    assert_upright(clips.copied(corners, suffix, after=("-bsf:v", filters)))


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientation_and_other_pixels(clips: Clips, name: str) -> None:
    source = write_corner_video_with_ratio(clips)
    path = with_matrix(source, clips.path(".mp4"), ORIENTATIONS[name])
    truth = shown_by_ffmpeg(path)
    batch = decode(path, 1)
    is_sideways = ORIENTATIONS[name][0] == 0
    assert (batch.video.width, batch.video.height) == ((HEIGHT, 144) if is_sideways else (144, HEIGHT))
    assert corner_names(batch.frames[0]) == corner_names(truth.first)


def write_corner_video_with_ratio(clips: Clips) -> Path:
    path = clips.folder / "corners_3_2.mp4"
    if not path.exists():
        plain = write_corner_video(clips.path(".mp4"), width=WIDTH, height=HEIGHT)
        ffmpeg("-i", plain, "-c", "copy", "-bsf:v", "h264_metadata=sample_aspect_ratio=3/2", path)
    return path


@pytest.mark.parametrize("name", ["clockwise", "mirrored", "antitransposed"])
def test_numbers_of_turned_pictures(clips: Clips, name: str) -> None:
    """The numbers turn with the picture, in ffmpeg's answer and in ours."""
    path = with_matrix(clips.clip(".mp4", seconds=2), clips.path(".mp4"), ORIENTATIONS[name])
    assert_like_ffmpeg(path)
    assert decode(path).frames.shape[1:] == (WHOLE.image_size, WHOLE.image_size, 3)
