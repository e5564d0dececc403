"""WebP against a composition of its frames in numpy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fuzz.webp_files import WebpFrame, animated_webp, canvas_chunk, frame_chunk, picture_chunk, webp_chunk, webp_file
from vidlex.model.decode.containers.animated_webp import AnimatedWebp, read_webp
from vidlex.model.decode.limits import DecodeError, DecodeLimits

LIMITS = DecodeLimits()


def composed(width: int, height: int, frames: list[WebpFrame]) -> list[NDArray[np.float64]]:
    """What a browser shows on a white page: [H, W, 3] of each frame."""
    canvas = np.zeros((height, width, 4))
    shown = []
    for frame in frames:
        rows = slice(frame.top, frame.top + frame.pixels.shape[0])
        columns = slice(frame.left, frame.left + frame.pixels.shape[1])
        new = frame.pixels.astype(float)
        if frame.blends:
            below, alpha = canvas[rows, columns], new[..., 3:] / 255
            under = below[..., 3:] / 255 * (1 - alpha)
            total = alpha + under
            colour = (new[..., :3] * alpha + below[..., :3] * under) / np.maximum(total, 1e-9)
            new = np.concatenate([colour, total * 255], axis=2)
        canvas[rows, columns] = new
        alpha = canvas[..., 3:] / 255
        shown.append(canvas[..., :3] * alpha + 255 * (1 - alpha))
        if frame.is_cleared:
            canvas[rows, columns] = 0
    return shown


def random_frame(rng: np.random.Generator, width: int, height: int) -> WebpFrame:
    left, top = (2 * int(rng.integers(0, size // 2)) for size in (width, height))
    size = (int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)), 4)
    pixels = rng.integers(0, 256, size, dtype=np.uint8)
    pixels[..., 3] = rng.choice(np.array([0, 90, 255], np.uint8), size[:2])
    delay = int(rng.integers(11, 400))
    return WebpFrame(pixels, left, top, delay, bool(rng.integers(2)), bool(rng.integers(2)))


def read(tmp_path: Path, data: bytes, **limits: Any) -> AnimatedWebp:
    path = tmp_path / "a.webp"
    path.write_bytes(data)
    return read_webp(path, dataclasses.replace(LIMITS, **limits))


@pytest.mark.parametrize("seed", range(12))
def test_pictures_are_composed_as_in_a_browser(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(2, 70)), int(rng.integers(2, 70))
    frames = [random_frame(rng, width, height) for _ in range(int(rng.integers(1, 15)))]
    webp = read(tmp_path, animated_webp(width, height, frames, background=0xFF00FF00))
    assert (webp.width, webp.height) == (width, height)
    assert webp.ends_ms.tolist() == np.cumsum([frame.duration_ms for frame in frames]).tolist()
    assert (webp.ends_ms - webp.starts_ms).tolist() == [frame.duration_ms for frame in frames]
    expected = composed(width, height, frames)
    pictures = list(webp.pictures(range(len(frames))))
    assert len(pictures) == len(frames)
    for picture, wanted in zip(pictures, expected, strict=True):
        assert picture.dtype == np.uint8 and picture.shape == (height, width, 3)
        assert abs(picture - wanted).max() < 4  # libwebp blends in eight bits, one frame after the other
    some = sorted(rng.integers(0, len(frames), 5).tolist())
    for index, picture in zip(some, webp.pictures(some), strict=True):
        np.testing.assert_array_equal(picture, pictures[index])


def test_pictures_of_several_calls(tmp_path: Path) -> None:
    """Also those before the last one read."""
    webp = read(tmp_path, animated_webp(16, 16, [solid(20 * k) for k in range(12)]))
    for indices in ([0, 1], [2, 5], [5, 5, 6], [1], [11], [0]):
        assert [int(picture[0, 0, 0]) for picture in webp.pictures(indices)] == [20 * k for k in indices]


def solid(value: int, size: int = 16, **options: Any) -> WebpFrame:
    return WebpFrame(np.full((size, size, 4), (value, value, value, 255), np.uint8), **options)


def test_very_short_frames_are_shown_for_100_ms(tmp_path: Path) -> None:
    frames = [solid(50, duration_ms=delay) for delay in (0, 1, 10, 11, 20, 16777215 // 1000)]
    webp = read(tmp_path, animated_webp(16, 16, frames))
    assert (webp.ends_ms - webp.starts_ms).tolist() == [100, 100, 100, 11, 20, 16777]
    assert webp.starts_ms[0] == 0


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}], ids=["VP8L", "VP8"])
def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], 90, axis=1).repeat(3, axis=2)
    Image.fromarray(rows).save(tmp_path / "b.webp", **options)
    webp = read_webp(tmp_path / "b.webp", LIMITS)
    assert (webp.width, webp.height) == (90, 60)
    assert (webp.starts_ms.tolist(), webp.ends_ms.tolist()) == ([0], [100])
    assert abs(next(webp.pictures([0])).astype(int) - rows).max() < 12


def test_pillows_own_animation(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((40, 60, 3), 20 * k, np.uint8)) for k in range(9)]
    pictures[0].save(tmp_path / "c.webp", save_all=True, append_images=pictures[1:], duration=70, lossless=True)
    webp = read_webp(tmp_path / "c.webp", LIMITS)
    assert webp.starts_ms.tolist() == list(range(0, 630, 70))
    assert [int(picture.mean()) for picture in webp.pictures([0, 3, 8])] == [0, 60, 160]


def test_a_cut_file_is_read_up_to_its_last_whole_frame(tmp_path: Path) -> None:
    whole = animated_webp(16, 16, [solid(20 * k) for k in range(10)])
    starts = [place for place in range(len(whole)) if whole[place : place + 4] == b"ANMF"]
    for keep, num_frames in ((len(whole) - 1, 9), (starts[5] + 3, 5), (starts[5], 5), (starts[1] + 20, 1)):
        webp = read(tmp_path, whole[:keep])
        assert len(webp.starts_ms) == num_frames
        values = [int(picture[0, 0, 0]) for picture in webp.pictures(range(num_frames))]
        assert values == [20 * k for k in range(num_frames)]
    with pytest.raises(DecodeError) as error:
        read(tmp_path, whole[: starts[0] + 20])
    assert error.value.code == "undecodable_video"


def test_pictures_end_at_a_damaged_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    data = bytearray(animated_webp(32, 32, [WebpFrame(np.roll(noise, k, axis=0)) for k in range(6)]))
    place = [place for place in range(len(data)) if data[place : place + 4] == b"ANMF"][3]
    data[place + 40 : place + 1500] = b"\xff" * 1460
    webp = read(tmp_path, bytes(data))
    assert len(list(webp.pictures(range(6)))) == 3
    with pytest.raises(DecodeError):
        list(webp.pictures([3, 4]))


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_side": 63}, "resolution_too_large"),
        ({"max_pixels": 64 * 32 - 1}, "resolution_too_large"),
        ({"max_aspect_ratio": 1.5}, "resolution_too_large"),
        ({"max_duration_ms": 399}, "video_too_long"),
        ({"max_file_frames": 3}, "video_too_long"),
    ],
)
def test_limits(tmp_path: Path, limits: dict[str, Any], code: str) -> None:
    data = animated_webp(64, 32, [solid(9) for _ in range(4)])
    assert read(tmp_path, data, max_side=64, max_pixels=64 * 32, max_duration_ms=400, max_file_frames=4).width == 64
    with pytest.raises(DecodeError) as error:
        read(tmp_path, data, **limits)
    assert error.value.code == code


def test_hostile_headers(tmp_path: Path) -> None:
    frame = frame_chunk(solid(9))
    anim = webp_chunk(b"ANIM", bytes(6))
    large = {
        "canvas of 2^24 x 2^24": webp_file(canvas_chunk(1 << 24, 1 << 24), anim, frame),
        "still picture of 16384 x 16384": webp_file(webp_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(50))),
    }
    for name, data in large.items():
        with pytest.raises(DecodeError) as error:
            read(tmp_path, data)
        assert error.value.code == "resolution_too_large", name
    # each frame claims 2^24 - 1 ms
    with pytest.raises(DecodeError) as error:
        read(tmp_path, animated_webp(16, 16, [solid(9, duration_ms=2**24 - 1)]))
    assert error.value.code == "video_too_long"
    # a few bytes a frame, each of which is composed on the whole canvas
    many = webp_file(canvas_chunk(4096, 4096), anim, *([frame_chunk(solid(9, 2, duration_ms=11))] * 257))
    with pytest.raises(DecodeError) as error:
        read(tmp_path, many)
    assert error.value.code == "video_too_long"
    broken = {
        "no chunk": webp_file(),
        "no frame": webp_file(canvas_chunk(16, 16), anim),
        "only a frame": webp_file(frame),
        "canvas of three bytes": webp_file(webp_chunk(b"VP8X", b"\x12\0\0")),
        "frame outside of the canvas": animated_webp(16, 16, [solid(9, left=8)]),
        "picture of no bytes": webp_file(webp_chunk(b"VP8L", b"")),
        "zeros": webp_file(bytes(5000)),
        "empty frame": webp_file(canvas_chunk(16, 16), anim, webp_chunk(b"ANMF", bytes(16))),
        "nested file": webp_file(canvas_chunk(16, 16), anim, webp_file(picture_chunk(solid(9).pixels))),
    }
    for name, data in broken.items():
        with pytest.raises(DecodeError) as error:
            next(read(tmp_path, data).pictures([0]))
        assert error.value.code == "undecodable_video", name
    # libwebp takes the size of a frame from its picture
    forged = read(tmp_path, webp_file(canvas_chunk(16, 16), anim, frame_chunk(solid(9), claimed=(16, 9000))))
    assert next(forged.pictures([0])).shape == (16, 16, 3)
