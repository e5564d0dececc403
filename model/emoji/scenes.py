"""Backgrounds: procedural images of each scene, drawn once into a bank and cropped at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from vidlex.model.emoji.vocabulary import SCENES

BANK_SIZE = 144  # pixels, before cropping to the canvas

Colour = tuple[int, int, int]


class Random:  # NumPy's generator, with the Python numbers that Pillow requires
    def __init__(self, seed: int) -> None:
        self.numpy = np.random.default_rng(seed)

    def integers(self, low: int, high: int) -> int:
        return int(self.numpy.integers(low, high))

    def uniform(self, low: float, high: float) -> float:
        return float(self.numpy.uniform(low, high))


@cache
def scene_bank(num_per_scene: int, seed: int) -> Tensor:
    """[scenes, num_per_scene, 3, 144, 144] uint8 in the order of ``SCENES``, bit-identical for the same seed.

    Cached and shared: callers must not write to it.
    """
    rng = Random(seed)
    pictures = [[_draw(scene, rng) for _ in range(num_per_scene)] for scene in SCENES]
    return torch.from_numpy(np.asarray(pictures)).permute(0, 1, 4, 2, 3).contiguous()


def _draw(scene: str, rng: Random) -> NDArray[np.uint8]:  # [144, 144, 3]
    picture = _PAINTERS[scene](rng)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    noise = rng.numpy.normal(0, rng.uniform(1, 5), (BANK_SIZE, BANK_SIZE, 1))
    gain = rng.uniform(0.88, 1.08)
    return np.clip(np.asarray(picture, np.float64) * gain + noise, 0, 255).astype(np.uint8)


def _vary(colour: Colour, rng: Random, amount: int = 18) -> Colour:
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return r, g, b


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    ramp = np.linspace(0, 1, BANK_SIZE)[:, None, None]
    rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp  # [144, 1, 3]
    return Image.fromarray(np.broadcast_to(rows, (BANK_SIZE, BANK_SIZE, 3)).astype(np.uint8))


def _ground(picture: Image.Image, horizon: int, colour: Colour) -> ImageDraw.ImageDraw:
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon, BANK_SIZE, BANK_SIZE), fill=colour)
    return draw


def _horizon(rng: Random, low: float = 0.4, high: float = 0.7) -> int:
    return int(BANK_SIZE * rng.uniform(low, high))


def _beach(rng: Random) -> Image.Image:
    picture = _gradient(_vary((130, 195, 240), rng), _vary((190, 225, 245), rng))
    sea = _horizon(rng, 0.3, 0.5)
    sand = sea + rng.integers(18, 40)
    _ground(picture, sea, _vary((40, 130, 190), rng))
    draw = _ground(picture, sand, _vary((235, 210, 150), rng))
    for _ in range(rng.integers(3, 8)):
        x, y = rng.integers(0, BANK_SIZE), rng.integers(sea + 2, sand)
        draw.line((x, y, x + 14, y), fill=(235, 245, 250), width=1)
    return picture


def _forest(rng: Random) -> Image.Image:
    picture = _gradient(_vary((150, 190, 170), rng), _vary((60, 100, 60), rng))
    horizon = _horizon(rng, 0.6, 0.8)
    draw = _ground(picture, horizon, _vary((70, 60, 35), rng))
    for _ in range(rng.integers(14, 26)):
        x, base = rng.integers(-5, BANK_SIZE), horizon + rng.integers(-4, 14)
        height, half = rng.integers(40, 90), rng.integers(7, 16)
        draw.rectangle((x - 2, base - 12, x + 2, base), fill=_vary((80, 55, 30), rng))
        draw.polygon(((x - half, base - 8), (x + half, base - 8), (x, base - height)), fill=_vary((30, 85, 40), rng))
    return picture


def _city(rng: Random) -> Image.Image:
    picture = _gradient(_vary((165, 180, 200), rng), _vary((205, 205, 210), rng))
    road = _horizon(rng, 0.72, 0.88)
    draw = _ground(picture, road, _vary((75, 75, 80), rng, 8))
    x = -rng.integers(0, 10)
    while x < BANK_SIZE:
        width, height = rng.integers(16, 32), rng.integers(35, 95)
        wall = rng.integers(70, 160)
        draw.rectangle((x, road - height, x + width, road), fill=_vary((wall, wall, wall + 10), rng, 10))
        light: Colour = _vary((235, 225, 150), rng) if rng.numpy.random() < 0.5 else _vary((60, 80, 110), rng)
        for wx in range(x + 3, x + width - 3, 6):
            for wy in range(road - height + 4, road - 6, 8):
                draw.rectangle((wx, wy, wx + 2, wy + 4), fill=light)
        x += width
    return picture


def _desert(rng: Random) -> Image.Image:
    picture = _gradient(_vary((240, 190, 120), rng), _vary((250, 225, 170), rng))
    horizon = _horizon(rng, 0.4, 0.6)
    draw = _ground(picture, horizon, _vary((205, 140, 75), rng))
    for _ in range(rng.integers(3, 6)):
        x, width, height = rng.integers(-30, BANK_SIZE), rng.integers(60, 140), rng.integers(10, 30)
        y = rng.integers(horizon - 5, BANK_SIZE)
        draw.ellipse((x, y, x + width, y + 2 * height), fill=_vary((215, 150, 80), rng, 25))
    return picture


def _snowy(rng: Random) -> Image.Image:
    picture = _gradient(_vary((175, 195, 220), rng), _vary((215, 225, 238), rng))
    horizon = _horizon(rng)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 5)):
        x, half, height = rng.integers(0, BANK_SIZE), rng.integers(25, 55), rng.integers(30, 65)
        peak, snow = (x, horizon - height), horizon - height * 2 // 3
        draw.polygon(((x - half, horizon), (x + half, horizon), peak), fill=_vary((140, 155, 180), rng))
        draw.polygon(((x - half // 3, snow), (x + half // 3, snow), peak), fill=(250, 252, 255))
    draw.rectangle((0, horizon, BANK_SIZE, BANK_SIZE), fill=_vary((238, 243, 250), rng, 8))
    return _speckle(picture, rng, (255, 255, 255), count=(50, 110), radius=1.6)


def _underwater(rng: Random) -> Image.Image:
    picture = _gradient(_vary((50, 160, 200), rng), _vary((5, 45, 110), rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(6, 14)):
        x, y, r = rng.integers(0, BANK_SIZE), rng.integers(0, BANK_SIZE), rng.integers(2, 6)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(170, 220, 240))
    for _ in range(rng.integers(3, 8)):
        x = rng.integers(0, BANK_SIZE)
        points = [(x + int(6 * np.sin(k)), BANK_SIZE - 7 * k) for k in range(rng.integers(3, 8))]
        draw.line(points, fill=_vary((20, 110, 70), rng), width=4)
    return picture


def _night(rng: Random) -> Image.Image:
    picture = _gradient(_vary((5, 8, 30), rng, 5), _vary((30, 25, 70), rng, 12))
    picture = _speckle(picture, rng, (255, 250, 220), count=(40, 100), radius=1.2)
    if rng.numpy.random() < 0.6:
        x, y, r = rng.integers(15, 130), rng.integers(10, 60), rng.integers(6, 12)
        ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=_vary((240, 235, 200), rng, 10))
    return picture


def _meadow(rng: Random) -> Image.Image:
    picture = _gradient(_vary((120, 185, 245), rng), _vary((185, 220, 250), rng))
    horizon = _horizon(rng)
    draw = _ground(picture, horizon, _vary((95, 175, 65), rng))
    for _ in range(rng.integers(25, 60)):
        x, y = rng.integers(0, BANK_SIZE), rng.integers(horizon, BANK_SIZE)
        petals = ((250, 240, 120), (245, 245, 250), (235, 120, 150))[rng.integers(0, 3)]
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=petals)
    return picture


def _sunset(rng: Random) -> Image.Image:
    picture = _gradient(_vary((90, 50, 110), rng), _vary((250, 140, 60), rng))
    horizon = _horizon(rng, 0.6, 0.8)
    x, r = rng.integers(20, 124), rng.integers(12, 22)
    ImageDraw.Draw(picture).ellipse((x - r, horizon - r, x + r, horizon + r), fill=_vary((255, 205, 90), rng, 10))
    _ground(picture, horizon, _vary((60, 35, 55), rng))
    return picture


def _road(rng: Random) -> Image.Image:
    picture = _gradient(_vary((150, 190, 230), rng), _vary((205, 220, 235), rng))
    horizon = _horizon(rng, 0.35, 0.5)
    draw = _ground(picture, horizon, _vary((120, 140, 80), rng))
    x = rng.integers(40, 104)
    draw.polygon(((x - 6, horizon), (x + 6, horizon), (x + 80, BANK_SIZE), (x - 80, BANK_SIZE)), fill=(70, 70, 75))
    for k in range(rng.integers(4, 7)):
        y = horizon + 6 + k * k * 4
        draw.rectangle((x - 1 - k, y, x + 1 + k, y + 3 + 2 * k), fill=(240, 235, 200))
    return picture


def _living_room(rng: Random) -> Image.Image:
    wall = _vary((200, 175, 150), rng, 40)
    picture = _gradient(wall, _vary(wall, rng, 8))
    floor = _horizon(rng, 0.68, 0.82)
    draw = _ground(picture, floor, _vary((130, 85, 50), rng))
    for y in range(floor + 5, BANK_SIZE, 9):
        draw.line((0, y, BANK_SIZE, y), fill=(100, 65, 40))
    for _ in range(rng.integers(1, 4)):
        x, y, w, h = rng.integers(0, 110), rng.integers(8, 40), rng.integers(18, 36), rng.integers(18, 32)
        draw.rectangle((x, y, x + w, y + h), fill=_vary((180, 210, 235), rng, 30), outline=(90, 60, 40), width=3)
    return picture


def _mountains(rng: Random) -> Image.Image:
    picture = _gradient(_vary((110, 160, 215), rng), _vary((215, 225, 230), rng))
    horizon = _horizon(rng, 0.8, 0.95)
    draw = _ground(picture, horizon, _vary((95, 110, 70), rng))
    for _ in range(rng.integers(4, 8)):
        x, half, height = rng.integers(-10, BANK_SIZE + 10), rng.integers(30, 60), rng.integers(50, 110)
        grey = rng.integers(80, 130)
        rock = _vary((grey, grey - 10, grey - 20), rng, 10)
        draw.polygon(((x - half, horizon), (x + half, horizon), (x + rng.integers(-9, 9), horizon - height)), fill=rock)
    return picture


def _speckle(
    picture: Image.Image, rng: Random, colour: Colour, *, count: tuple[int, int], radius: float
) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    for x, y in rng.numpy.uniform(0, BANK_SIZE, (rng.integers(*count), 2)):
        r = rng.uniform(0.3, radius)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    return picture


_PAINTERS: Mapping[str, Callable[[Random], Image.Image]] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "desert": _desert,
    "snowy landscape": _snowy,
    "underwater": _underwater,
    "night sky": _night,
    "meadow": _meadow,
    "sunset": _sunset,
    "road": _road,
    "living room": _living_room,
    "mountains": _mountains,
}
assert set(_PAINTERS) == set(SCENES)
