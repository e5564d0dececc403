"""Geometry of scaling and cropping a picture to the model's square, as in open_clip's preprocessing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameGeometry


def scaled_size(geometry: FrameGeometry, width: int, height: int) -> tuple[int, int]:
    # (width, height) before `fit_square`
    size = geometry.image_size
    if geometry.resize_mode == "squash":
        return size, size
    short, long = min(width, height), max(width, height)
    other = size * long // short if geometry.resize_mode == "shortest" else max(1, round(size * short / long))
    return (size, other) if (width <= height) == (geometry.resize_mode == "shortest") else (other, size)


def fit_square(picture: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Centre a picture [h, w, 3] in the square ``out`` [H, W, 3], cropped or padded with black."""
    size = out.shape[0]
    top, left = (round((side - size) / 2) for side in picture.shape[:2])
    crop = picture[max(0, top) : max(0, top) + size, max(0, left) : max(0, left) + size]
    height, width = crop.shape[:2]
    if (height, width) == (size, size):
        out[:] = crop
        return
    out[:] = 0
    y, x = (size - height) // 2, (size - width) // 2
    out[y : y + height, x : x + width] = crop
