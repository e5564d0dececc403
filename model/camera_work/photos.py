"""Photos and cut-out objects that are moved by program.

A folder holds the files and ``manifest.jsonl``: ``file`` and, for the record, ``package``, ``version`` and ``licence``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vidlex.model.camera_work.random_scenes import SceneConfig, SourceSize, random_scene
from vidlex.model.camera_work.render import Material, make_object, make_source
from vidlex.model.camera_work.scene import Floats, Scene

MAX_SHOTS = 4
MAX_OBJECTS = 3
HELD_OUT_EVERY = 7  # of the photos in the manifest's order


@dataclass(frozen=True, eq=False)
class PhotoBank:
    photos: tuple[NDArray[np.uint8], ...]  # each [h, w, 3]
    objects: tuple[NDArray[np.uint8], ...]  # each [h, w, 4]


def read_photos(folder: Path, object_folder: Path, *, is_held_out: bool) -> PhotoBank:
    return PhotoBank(_read(folder, "RGB", is_held_out), _read(object_folder, "RGBA", is_held_out))


def _read(folder: Path, mode: str, is_held_out: bool) -> tuple[NDArray[np.uint8], ...]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    files = sorted(json.loads(line)["file"] for line in lines)
    chosen = [name for i, name in enumerate(files) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == is_held_out]
    pictures = []
    for name in chosen:
        with Image.open(folder / name) as picture:
            pictures.append(np.asarray(picture.convert(mode)))
    return tuple(pictures)


def draw(rng: np.random.Generator, bank: PhotoBank, config: SceneConfig) -> tuple[Scene, Material]:
    photos = [_vary(rng, bank.photos[rng.integers(len(bank.photos))]) for _ in range(MAX_SHOTS)]
    if rng.random() < 0.15:
        photos[1] = photos[0]  # a jump cut
    sizes = [SourceSize(p.shape[1], p.shape[0]) for p in photos]
    scene = random_scene(rng, sizes, MAX_OBJECTS, config, [detail_of(p) for p in photos])
    used = max(int(scene.shot.max()), int(scene.other_shot.max())) + 1
    sources = [make_source(p[None]) for p in photos[:used]]
    objects = [_draw_object(rng, bank) for _ in range(MAX_OBJECTS)]
    return scene, Material(sources, objects)


def detail_of(photo: NDArray[np.uint8]) -> Floats:
    """[16, 16] how much is to be seen around a place, 0..1."""
    grey = torch.from_numpy(np.ascontiguousarray(photo)).float().mean(2)[None, None] / 255
    grey = torch.nn.functional.interpolate(grey, size=(64, 64), mode="area")
    steps = (grey[..., 1:, :-1] - grey[..., :-1, :-1]).abs() + (grey[..., :-1, 1:] - grey[..., :-1, :-1]).abs()
    local = torch.nn.functional.adaptive_avg_pool2d(steps, 16)
    local = torch.nn.functional.avg_pool2d(local, 5, stride=1, padding=2)
    return np.asarray((local / 0.08).clamp(0, 1)[0, 0].numpy().astype(np.float64))


def _vary(rng: np.random.Generator, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    short = min(photo.shape[:2])
    if rng.random() < 0.35:
        scale = rng.uniform(220, 400) / short
        size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
        photo = np.asarray(Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.Resampling.BILINEAR))
    gains = rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3)
    contrast = rng.uniform(0.7, 1.1)
    values = photo.astype(np.float32)
    values = (values - values.mean()) * contrast + values.mean()
    if rng.random() < 0.08:
        values = np.broadcast_to(values.mean(2, keepdims=True), values.shape)
    return np.clip(values * gains, 0, 255).astype(np.uint8)


def _draw_object(rng: np.random.Generator, bank: PhotoBank) -> Tensor:
    if bank.objects and rng.random() < 0.6:
        picture = bank.objects[rng.integers(len(bank.objects))]
    else:
        picture = cut_ellipse(rng, bank.photos[rng.integers(len(bank.photos))])
    return make_object(picture[:, ::-1] if rng.random() < 0.5 else picture)


def cut_ellipse(rng: np.random.Generator, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[h, w, 4] a part of the photo with a soft, irregular outline."""
    h, w = (int(v) for v in rng.integers(80, 220, 2))
    h, w = min(h, photo.shape[0]), min(w, photo.shape[1])
    y, x = rng.integers(0, photo.shape[0] - h + 1), rng.integers(0, photo.shape[1] - w + 1)
    v, u = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    angle = np.arctan2(v, u)
    edge = 0.85 + sum(rng.normal(0, 0.06) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    opacity = np.clip((edge - np.hypot(u, v)) * rng.uniform(5, 20), 0, 1)
    part = photo[y : y + h, x : x + w]
    return np.concatenate((part, (opacity * 255).astype(np.uint8)[..., None]), axis=2)
