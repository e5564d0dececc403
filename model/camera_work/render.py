"""Renders a scene: every frame is cut out of its source at the scene's place, scale and angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.camera_work.scene import Scene

MAX_BLUR_SAMPLES = 5
PIXELS_PER_BLUR_SAMPLE = 3.0


@dataclass(frozen=True, eq=False)
class Source:
    """Frames [N, 3, h, w] of a photo (N 1) or of a video, at full size and repeatedly halved; values 0..1."""

    levels: tuple[Tensor, ...]

    @property
    def width(self) -> int:
        return int(self.levels[0].shape[3])

    @property
    def height(self) -> int:
        return int(self.levels[0].shape[2])


@dataclass(frozen=True, eq=False)
class Material:
    sources: Sequence[Source]  # one per shot
    objects: Sequence[Tensor]  # one per object of the scene, see ``make_object``


def make_source(frames: NDArray[np.uint8]) -> Source:
    """From frames [N, h, w, 3]."""
    levels = [torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255]
    while min(levels[-1].shape[2:]) >= 256:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return Source(tuple(levels))


def make_object(picture: NDArray[np.uint8]) -> Tensor:
    """[1, 4, h, w] with colours multiplied by the opacity, from [h, w, 4] RGBA."""
    values = torch.tensor(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
    return torch.cat((values[:3] * values[3:], values[3:]))[None]


def render(scene: Scene, material: Material, size: int) -> NDArray[np.uint8]:
    """[T, size, size, 3]."""
    grid = _grid(size)
    frames = [_frame(scene, t, material, grid) for t in range(scene.num_frames)]
    stacked = torch.cat(frames).permute(0, 2, 3, 1).numpy()
    return np.asarray((stacked * 255 + 0.5).astype(np.uint8))


def _grid(size: int) -> Tensor:  # [size, size, 2] x and y of the pixels' centres, -0.5..0.5
    ticks = (torch.arange(size) + 0.5) / size - 0.5
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)


def _turn(points: Tensor, angle: float) -> Tensor:
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return points @ torch.tensor(((c, s), (-s, c)))  # row vectors: counted clockwise, as y points down


def _frame(scene: Scene, t: int, material: Material, grid: Tensor) -> Tensor:
    picture = _shot_frame(scene, t, int(scene.shot[t]), material, grid)
    weight = float(scene.blend[t])
    if weight > 0:
        other = _shot_frame(scene, t, int(scene.other_shot[t]), material, grid)
        picture = picture * (1 - weight) + other * weight
    if scene.defocus[t] * len(grid) > 0.3:
        picture = _blur(picture, float(scene.defocus[t]) * len(grid))
    picture = picture * float(scene.gain[t])
    picture = picture + (1 - picture) * float(scene.flash[t])
    if scene.noise_std[t] > 0:
        noise = np.random.default_rng(int(scene.seed[t])).standard_normal(picture.shape, np.float32)
        picture = picture + torch.from_numpy(noise) * float(scene.noise_std[t])
    return picture.clamp(0, 1)


def _shot_frame(scene: Scene, t: int, shot: int, material: Material, grid: Tensor) -> Tensor:
    size = len(grid)
    blur = scene.blur_length[t]
    num_samples = int(np.clip(np.hypot(*blur) * size / PIXELS_PER_BLUR_SAMPLE, 1, MAX_BLUR_SAMPLES))
    picture = torch.zeros(1, 3, size, size)
    for sample in range(num_samples):
        offset = blur * ((sample + 0.5) / num_samples - 0.5) + scene.shake[t, :2]
        picture += _sample(scene, t, shot, material.sources[shot], grid + torch.tensor(offset, dtype=torch.float32))
    picture /= num_samples
    for index, places in enumerate(scene.objects):
        if scene.object_shot[index] == shot:
            picture = _paste(picture, material.objects[index], places[t], grid)
    return picture


def _sample(scene: Scene, t: int, shot: int, source: Source, grid: Tensor) -> Tensor:
    width = float(np.exp(scene.log_width[shot, t]))
    level = source.levels[min(max(int(np.log2(max(width / len(grid), 1.0)) + 0.3), 0), len(source.levels) - 1)]
    points = _turn(grid, -float(scene.camera[shot, t, 3] + scene.shake[t, 2])) * width
    points = points + torch.tensor(scene.centre[shot, t], dtype=torch.float32)
    points = points * torch.tensor((2 / source.width, 2 / source.height)) - 1
    frame = level[int(scene.moment[t]) if len(level) > 1 else 0][None]
    return F.grid_sample(frame, points[None], mode="bilinear", padding_mode="reflection", align_corners=False)


def _paste(picture: Tensor, thing: Tensor, place: NDArray[np.float64], grid: Tensor) -> Tensor:
    x, y, log_width, angle = (float(v) for v in place)
    width = float(np.exp(log_width))
    h, w = thing.shape[2:]
    if max(abs(x), abs(y)) > 0.5 + width * max(1.0, h / w):
        return picture
    while thing.shape[3] > 2 * width * len(grid) and min(thing.shape[2:]) >= 4:
        thing = F.avg_pool2d(thing, 2)
    points = _turn(grid - torch.tensor((x, y)), -angle) * torch.tensor((2 / width, 2 / width * w / h))
    cut = F.grid_sample(thing, points[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return picture * (1 - cut[:, 3:]) + cut[:, :3]


def _blur(picture: Tensor, std: float) -> Tensor:
    if std > 4:  # a wide blur is computed on a smaller picture
        small = F.avg_pool2d(picture, 2)
        return F.interpolate(_blur(small, std / 2), size=picture.shape[2:], mode="bilinear", align_corners=False)
    radius = max(1, int(2.5 * std + 0.5))
    ticks = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(ticks**2) / (2 * std**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(picture, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
