"""Frames of one video for training, with a random window, crop, reflection and colours of the whole video.

Runs in a decode process: imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.decode.video_file import VideoFile
from vidlex.model.types import FrameGeometry

Frames = NDArray[np.uint8]  # [T, H, W, 3]

MAX_ASPECT_CHANGE = 4 / 3  # of a crop
MAX_ENLARGEMENT = 3  # side of the decoded picture over that of the result
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """See ``DataConfig``. ``seed``: all random numbers of one video."""

    seed: tuple[int, ...]
    crop_scale: float
    flip: bool
    colour: float
    time_jitter: float


def read_frames(
    path: Path,
    *,
    geometry: FrameGeometry,
    num_frames: int,
    start_ms: int | None,
    end_ms: int | None,
    augmentation: Augmentation | None,
) -> Frames:
    """Without ``augmentation`` as the service decodes. Raises DecodeError or OSError."""
    if augmentation is None:
        return decode_frames(
            path, geometry=geometry, num_frames=num_frames, start_ms=start_ms, end_ms=end_ms, num_threads=1
        ).frames
    rng = np.random.default_rng(augmentation.seed)
    before, after = rng.uniform(0, augmentation.time_jitter, 2)
    crop = _Crop(rng.uniform(augmentation.crop_scale, 1), rng.uniform(-1, 1), *rng.uniform(0, 1, 2))
    is_mirrored = augmentation.flip and rng.uniform() < 0.5
    colours = rng.uniform(1 - augmentation.colour, 1 + augmentation.colour, 3)
    info = VideoFile(path, DecodeLimits(), num_threads=1).info
    if augmentation.time_jitter > 0:
        first, last = start_ms or 0, min(end_ms or info.duration_ms, info.duration_ms)
        start_ms = first + int(before * (last - first))
        end_ms = max(start_ms + 1, last - int(after * (last - first)))
    decoded, box = geometry, None
    if augmentation.crop_scale < 1:
        decoded, box = _plan_crop(geometry, info.width, info.height, crop)
    elif geometry.resize_mode == "longest":  # the bars stay black
        box = _box_of_picture(geometry.image_size, scaled_size(geometry, info.width, info.height))
    frames = decode_frames(
        path, geometry=decoded, num_frames=num_frames, start_ms=start_ms, end_ms=end_ms, num_threads=1
    ).frames
    matrix = _colour_matrix(colours, frames) if augmentation.colour else None
    return _transform(frames, geometry, box, is_mirrored=is_mirrored, matrix=matrix)


@dataclass(frozen=True)
class _Crop:
    area: float  # relative to what the model sees without augmentation: with "shortest" the central square
    aspect: float  # -1 to 1: the logarithm of width over height, over that of MAX_ASPECT_CHANGE
    left: float  # 0 to 1, between the borders of the picture
    top: float


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def _plan_crop(geometry: FrameGeometry, width: int, height: int, crop: _Crop) -> tuple[FrameGeometry, Box]:
    """How to decode, and the box of the decoded square to keep. The crop may lie anywhere in the picture."""
    size = geometry.image_size
    side = math.ceil(size / math.sqrt(crop.area))
    if geometry.resize_mode == "shortest":
        side = math.ceil(side * max(width, height) / min(width, height))
        side = max(size, min(side, MAX_ENLARGEMENT * size, max(width, height)))
        decoded = FrameGeometry(side, "longest")
        picture = scaled_size(decoded, width, height)
        seen = (min(picture), min(picture))
    else:
        side = min(side, MAX_ENLARGEMENT * size)
        decoded = replace(geometry, image_size=side)
        picture = seen = scaled_size(decoded, width, height)
    aspect = MAX_ASPECT_CHANGE**crop.aspect
    crop_width = min(picture[0], seen[0] * math.sqrt(crop.area * aspect))
    crop_height = min(picture[1], seen[1] * math.sqrt(crop.area / aspect))
    first_left, first_top, *_ = _box_of_picture(side, picture)
    left = first_left + crop.left * (picture[0] - crop_width)
    top = first_top + crop.top * (picture[1] - crop_height)
    box = (left, top, min(side, left + crop_width), min(side, top + crop_height))
    return decoded, box


def _box_of_picture(side: int, picture: tuple[int, int]) -> Box:  # as ``fit_square`` pads it
    left, top = ((side - length) // 2 for length in picture)
    return left, top, left + picture[0], top + picture[1]


def _colour_matrix(factors: Sequence[float] | NDArray[np.float64], frames: Frames) -> tuple[float, ...]:
    """Brightness, saturation and contrast as one affine map of RGB, in the 12 numbers of PIL's ``convert``."""
    brightness, saturation, contrast = factors
    grey = np.array(_GREY)
    mean = float((frames[len(frames) // 2, ::8, ::8].reshape(-1, 3) @ grey).mean()) * brightness
    linear = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey[None, :])
    offset = (1 - contrast) * mean
    return tuple(np.concatenate([linear, np.full((3, 1), offset)], axis=1).ravel().tolist())


def _transform(
    frames: Frames, geometry: FrameGeometry, box: Box | None, *, is_mirrored: bool, matrix: tuple[float, ...] | None
) -> Frames:
    side = geometry.image_size
    size = (side, side)
    if box is not None and geometry.resize_mode == "longest":  # padded like the whole picture, not squashed
        size = scaled_size(geometry, round(box[2] - box[0]), round(box[3] - box[1]))
    out = np.empty((len(frames), side, side, 3), np.uint8)
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        if box is not None:
            picture = picture.resize(size, Image.Resampling.BICUBIC, box=box)
        if is_mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if matrix is not None:
            picture = picture.convert("RGB", matrix)
        fit_square(np.asarray(picture), out[number])
    return out
