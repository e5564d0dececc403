"""Feature maps of rendered scenes, computed once by the frozen tower and kept on disk as float16.

A folder holds ``maps.npy`` [num_scenes, T, C, H, W], a part of the file at a time in memory, and ``scenes.npz``, the
scenes' states. Any part of a scene, forwards or backwards, gives an example, as the labels follow from the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.camera_work.photos import PhotoBank, draw
from vidlex.model.camera_work.random_scenes import SceneConfig
from vidlex.model.camera_work.render import render
from vidlex.model.camera_work.scene import Scene

EncodeMaps = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # [T, size, size, 3] RGB -> [T, C, H, W]


@dataclass(frozen=True, eq=False)
class MapCache:
    maps: NDArray[np.float16]  # [num_scenes, T, C, H, W]
    scenes: tuple[Scene, ...]


def write_map_cache(
    folder: Path,
    bank: PhotoBank,
    encode: EncodeMaps,
    *,
    num_scenes: int,
    seed: int,
    image_size: int,
    config: SceneConfig,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scenes: list[Scene] = []
    maps: NDArray[np.float16] | None = None
    for index in range(num_scenes):
        scene, material = draw(np.random.default_rng((seed, index)), bank, config)
        found = encode(render(scene, material, image_size))
        if maps is None:
            shape = (num_scenes, *found.shape)
            maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=np.float16, shape=shape)
        maps[index] = found
        scenes.append(scene)
        if progress is not None:
            progress(index + 1, num_scenes)
    np.savez(folder / "scenes.npz", **_stack(scenes))


def read_map_caches(folders: Sequence[Path]) -> list[MapCache]:
    caches = []
    for folder in folders:
        with np.load(folder / "scenes.npz") as arrays:
            columns = {field.name: arrays[field.name] for field in fields(Scene)}
        num_scenes = len(columns["shot"])
        scenes = tuple(Scene(**{name: column[i] for name, column in columns.items()}) for i in range(num_scenes))
        caches.append(MapCache(np.load(folder / "maps.npy", mmap_mode="r"), scenes))
    return caches


def _stack(scenes: Sequence[Scene]) -> dict[str, Any]:
    return {field.name: np.stack([getattr(scene, field.name) for scene in scenes]) for field in fields(Scene)}
