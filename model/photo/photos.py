"""Free photographs with labels, as training data: where they come from, what they show, their features.

``photos.jsonl`` names the package, the path in it, the licence, and the labels given by looking at the photo; those in
``unsure`` are neither true nor false. ``validation.jsonl`` has other photographs in the same form. The photos
themselves are not stored here: unpack the packages into a folder, ``FOLDER/PACKAGE/PATH`` without the package's
version.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MANIFEST = Path(__file__).with_name("photos.jsonl")
VALIDATION = Path(__file__).with_name("validation.jsonl")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Photo:
    package: str  # "debian:NAME VERSION" or "pypi:NAME VERSION"
    path: str
    licence: str
    labels: tuple[str, ...]
    unsure: tuple[str, ...]

    def file(self, folder: Path) -> Path:
        return folder / self.package.split(":")[1].split(" ")[0] / self.path


def read_photos(manifest: Path = MANIFEST) -> list[Photo]:
    photos = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        photos.append(Photo(row["package"], row["path"], row["licence"], tuple(row["labels"]), tuple(row["unsure"])))
    return photos


def frequent_labels(photos: Sequence[Photo], min_photos: int) -> list[str]:
    counts = Counter(label for photo in photos for label in photo.labels)
    return sorted(label for label, count in counts.items() if count >= min_photos)


def label_matrix(photos: Sequence[Photo], labels: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """Truth and whether it is known, [photos, labels] each."""
    truth = np.array([[label in photo.labels for label in labels] for photo in photos], np.float32)
    unsure = np.array([[label in photo.unsure for label in labels] for photo in photos])
    return truth, ~unsure | (truth > 0)


def load_photo(file: Path, image_size: int) -> NDArray[np.uint8]:
    """[H, W, 3] RGB: the short side scaled to ``image_size``, the centre cropped, as videos are."""
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = image_size / min(image.size)
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))


def photo_features(
    files: Sequence[Path], encode: Callable[[NDArray[np.uint8]], Floats], image_size: int, batch_size: int = 16
) -> Floats:
    """``encode``: [n, H, W, 3] uint8 -> [n, D]."""
    parts = []
    for start in range(0, len(files), batch_size):
        parts.append(encode(np.stack([load_photo(file, image_size) for file in files[start : start + batch_size]])))
    return np.concatenate(parts)
