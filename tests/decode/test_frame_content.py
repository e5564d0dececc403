"""The content of frames without a model, on pictures drawn here."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlex.model.decode.frame_content import FrameContentDetector
from vidlex.model.types import FrameContent

SIZE = 224
COLOURS = {"black": (0, 0, 0), "limited-range black": (16, 16, 16), "white": (255, 255, 255), "grey": (128, 128, 128),
           "blue": (0, 0, 255), "green": (20, 180, 60)}  # fmt: skip


def scene(seed: int, *, size: int = SIZE, shift: int = 0) -> np.ndarray:
    """Some soft shapes in a few colours; ``shift`` is that of a moving camera, in pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] * (SIZE / size)
    x = x + shift
    picture = np.tile(random.uniform(20, 235, 3), (size, size, 1))
    for _ in range(12):
        centre, radius = random.uniform(-40, SIZE + 40, 2), random.uniform(15, 70)
        inside = 1 / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) / 3))
        picture += inside[..., None] * (random.uniform(0, 255, 3) - picture)
    return picture.clip(0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def content(*pictures: np.ndarray) -> FrameContent:
    return FrameContentDetector().add(np.stack(pictures))


def plain(colour: str) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), COLOURS[colour], np.uint8)


@pytest.mark.parametrize("colour", COLOURS)
def test_one_colour_is_blank_with_noise_and_a_logo_in_a_corner(colour: str) -> None:
    picture = plain(colour)
    logo = picture.copy()
    logo[10:40, -50:-10] = 255 - logo[10:40, -50:-10]
    assert content(picture, noisy(picture, 8), logo, noisy(logo, 8)).is_blank.tolist() == [True] * 4


def test_pictures_are_not_blank() -> None:
    bird = np.full((SIZE, SIZE, 3), (140, 190, 250), np.uint8)
    bird[100:125, 90:130] = 60  # 2 % of the picture
    drawing = plain("white")
    drawing[50:180, 60:62] = drawing[50:52, 60:180] = drawing[178:180, 60:180] = 0  # thin lines
    sky = np.linspace(90, 150, SIZE, dtype=np.uint8)[:, None, None] * np.ones((1, SIZE, 3), np.uint8)
    night = (scene(3) * 0.15).astype(np.uint8)
    bars = np.repeat(np.array([[255] * 3, [255, 255, 0], [0, 255, 255], [0, 255, 0]], np.uint8), SIZE // 4, axis=0)
    bars = np.tile(bars[None], (SIZE, 1, 1))
    assert not content(bird, drawing, sky, night, bars, scene(1)).is_blank.any()


@given(st.integers(0, 2**32), st.floats(0, 4))
@settings(max_examples=20, deadline=None)
def test_a_still_picture_is_repeated_whatever_its_noise(seed: int, sigma: float) -> None:
    pictures = [noisy(scene(seed), sigma, number) for number in range(3)]
    found = content(*pictures)
    assert found.is_repeated.tolist() == [False, True, True]
    assert found.starts_shot.tolist() == [True, False, False]


def test_something_small_that_moves_is_no_repetition() -> None:
    pictures = [scene(1) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture[100:115, 50 * number : 50 * number + 15] = 255 * (number % 2)
    assert content(*pictures).is_repeated.tolist() == [False, False, False]


def test_slow_changes_add_up() -> None:
    picture = scene(1)
    pictures = [np.rint(picture * (1 - 0.004 * number)).astype(np.uint8) for number in range(30)]  # it grows dark
    repeated = content(*pictures).is_repeated
    assert repeated[1]
    assert not repeated[1:].all()


@given(st.integers(0, 2**16), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_a_moving_camera_stays_in_its_shot_until_a_cut(first: int, second: int) -> None:
    pictures = [scene(first, shift=8 * number) for number in range(3)]
    pictures += [scene(second + 2**16, shift=8 * number) for number in range(2)]
    starts_shot = content(*pictures).starts_shot.tolist()
    assert starts_shot[:3] == [True, False, False]
    assert not starts_shot[4]


def test_cuts_start_shots() -> None:
    found = [content(scene(2 * seed), scene(2 * seed + 1)).starts_shot[1] for seed in range(50)]
    assert sum(found) >= 48


def test_black_between_two_scenes_starts_a_shot_on_both_sides() -> None:
    found = content(scene(1), plain("black"), plain("black"), scene(1))
    assert found.starts_shot.tolist() == [True, True, False, True]
    assert found.is_blank.tolist() == [False, True, True, False]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_chunks_do_not_matter(lengths: list[int]) -> None:
    frames = np.stack([scene(number // 3, size=96, shift=2 * (number % 2)) for number in range(sum(lengths))])
    whole, detector = FrameContentDetector().add(frames), FrameContentDetector()
    parts = [detector.add(part) for part in np.split(frames, np.cumsum(lengths)[:-1])]
    for name in ("is_blank", "is_repeated", "starts_shot"):
        assert np.concatenate([getattr(part, name) for part in parts]).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize("size", [1, 8, 31, 32, 47, 100, 336, 1024])
def test_any_size_of_picture(size: int) -> None:
    frames = np.stack([np.full((size, size, 3), value, np.uint8) for value in (0, 0, 255)])
    found = FrameContentDetector().add(frames)
    assert found.is_blank.all()
    assert found.is_repeated.tolist() == [False, True, False]
    assert found.starts_shot.tolist() == [True, False, True]


def test_it_costs_less_than_a_millisecond_a_frame() -> None:
    frames = np.stack([scene(number, size=260) for number in range(16)])
    detector, seconds = FrameContentDetector(), []
    for _ in range(10):
        start = time.perf_counter()
        detector.add(frames)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) / len(frames) < 0.001  # measured: 0.0002
