"""Features of video and picture files on disk, as the service computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vidlex.model.calibration.bank import BANK
from vidlex.model.calibration.domain import CalibrationError, DomainCalibration
from vidlex.model.calibration.fit import fit_domain
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.classifier import Classifier
from vidlex.model.data.manifest import ManifestError, read_manifest
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeError
from vidlex.model.types import FrameGeometry

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts", ".m2ts", ".mts"})
_NUM_DECODERS = 2


@dataclass(frozen=True, eq=False)
class EncodedFiles:
    features: NDArray[np.float32]  # [n, D]
    skipped: tuple[tuple[Path, str], ...]  # with the reason


def find_files(sources: Sequence[Path]) -> list[Path]:
    """Files, all videos and pictures in folders, and those in lists (.txt: one path per line; .jsonl: a manifest).

    Paths in a list are relative to it. Sorted within a folder, without duplicates. Raises OSError, ManifestError.
    """
    found: dict[Path, None] = {}
    for source in sources:
        found |= dict.fromkeys(_files_of(source))
    return list(found)


def _files_of(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURES | VIDEOS and p.is_file())
    elif source.suffix == ".txt":
        lines = source.read_text(encoding="utf-8").splitlines()
        yield from (source.parent / line.strip() for line in lines if line.strip())
    elif source.suffix == ".jsonl":
        yield from (source.parent / entry.video for entry in read_manifest(source))
    elif source.is_file():
        yield source
    else:
        raise ManifestError(f"{source} is neither a file nor a folder")


def encode_files(
    classifier: Classifier,
    files: Iterable[Path],
    *,
    num_frames: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedFiles:
    """A file that cannot be decoded is skipped."""

    def decode(path: Path) -> NDArray[np.uint8] | str:
        try:
            if path.suffix.lower() in PICTURES:
                return read_picture(path, classifier.geometry)[None]
            count = num_frames or classifier.num_frames
            return decode_frames(path, geometry=classifier.geometry, num_frames=count).frames
        except (DecodeError, OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            return str(error) or type(error).__name__

    rows: list[NDArray[np.float32]] = []
    skipped: list[tuple[Path, str]] = []
    paths = list(files)
    with ThreadPoolExecutor(_NUM_DECODERS) as pool:
        for start in range(0, len(paths), 4 * _NUM_DECODERS):  # bounds the decoded frames in memory
            part = paths[start : start + 4 * _NUM_DECODERS]
            for path, frames in zip(part, pool.map(decode, part), strict=True):
                if isinstance(frames, str):
                    skipped.append((path, frames))
                else:
                    rows.append(classifier.encode_video([frames])[0])
                if progress is not None:
                    progress(len(rows) + len(skipped))
    features = np.stack(rows) if rows else np.empty((0, classifier.dim), np.float32)
    return EncodedFiles(features, tuple(skipped))


def calibrate(classifier: Classifier, sources: Sequence[Path], *, num_frames: int | None = None) -> DomainCalibration:
    """On the files of ``find_files(sources)``. Raises OSError, ManifestError, CalibrationError."""
    features = encode_files(classifier, find_files(sources), num_frames=num_frames).features
    if not len(features):
        raise CalibrationError("none of the files could be decoded")
    bank = classifier.encode_labels(BANK)
    return fit_domain(DomainStatistics.of(features), bank, classifier.scorer, classifier.calibration)


def read_picture(path: Path, geometry: FrameGeometry) -> NDArray[np.uint8]:
    """[H, W, 3] at ``geometry``, upright. Raises OSError, UnidentifiedImageError."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    width, height = scaled_size(geometry, *upright.size)
    out = np.empty((geometry.image_size, geometry.image_size, 3), np.uint8)
    fit_square(np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC)), out)
    return out
