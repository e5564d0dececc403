"""Outputs of the frozen tower on disk: float16, one file per video and view, memory-mapped when read.

Folder ``<identity>`` stands for everything but the video: weights of the tower, depth of the branch, frames, geometry,
precision. The file's name is a digest of the content of the video file, window and augmentation, so that runs can share
a folder. A video whose content cannot be decoded has a file with the reason in place of its outputs; other reasons,
such as a time limit, are those of the run.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidlex.model.config import fingerprint
from vidlex.model.files import replace_atomically
from vidlex.model.train.source import SourceSetup
from vidlex.model.video.encoder import Trunk

_VERSION = 1  # of the stored values
Half = NDArray[np.float16]


class TrunkCache:
    def __init__(self, folder: Path, setup: SourceSetup) -> None:
        encoder, geometry, config = setup.encoder, setup.geometry, setup.config
        self.encoder = encoder
        self.bf16 = bool(config.bf16)
        num_frames = encoder.config.num_frames
        frames = torch.zeros(1, num_frames, 3, geometry.image_size, geometry.image_size, dtype=torch.uint8)
        features, tokens = self.compute(frames)
        self.shapes = tuple(features.shape[1:]), tuple(tokens.shape[1:])  # of one video
        self.sizes = features.numel(), tokens.numel()
        self._num_file_bytes = len(_npy(features, tokens))
        identity = fingerprint(
            _VERSION, setup.clip_digest, encoder.config.num_branch_blocks, num_frames, geometry.image_size,
            geometry.resize_mode, self.bf16,
        )  # fmt: skip
        self.folder = folder / identity

    @property
    def num_bytes(self) -> int:  # per video and view
        return 2 * sum(self.sizes)

    @torch.no_grad()
    def compute(self, frames: torch.Tensor) -> Trunk:
        """[B, T, 3, H, W] uint8 -> float16 on the CPU."""
        device = self.encoder.mean.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            trunk = self.encoder.compute_trunk(frames.to(device))
        return Trunk(trunk.frame_features.half().cpu(), trunk.tokens.half().cpu())

    def key(self, content: str, start_ms: int | None, end_ms: int | None, view: object) -> str:
        return fingerprint(content, start_ms, end_ms, view)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _reason(self, key: str) -> Path:
        return self._file(key).with_suffix(".broken")

    def has(self, key: str) -> bool:
        try:
            return self._file(key).stat().st_size == self._num_file_bytes  # not cut off, as by a loss of power
        except FileNotFoundError:
            return False

    def is_finished(self, key: str) -> bool:
        return self.has(key) or self._reason(key).exists()

    def reason(self, key: str) -> str | None:
        """Why there are no outputs of the video; None if there are, or if it was not tried."""
        path = self._reason(key)
        return path.read_text(encoding="utf-8") if path.exists() else None

    def write(self, key: str, features: torch.Tensor, tokens: torch.Tensor) -> None:
        """Of one video, float16. Raises ValueError if a value exceeds float16, or the disk is full."""
        if not (features.isfinite().all() and tokens.isfinite().all()):
            raise ValueError("outputs of the tower exceed float16, in which they are kept on disk")
        path = self._file(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path, is_shared=True) as temporary:
                temporary.write_bytes(_npy(features, tokens))
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written: {error.strerror or error}. The same command continues once it can"
            ) from error

    def write_reason(self, key: str, reason: str) -> None:
        path = self._reason(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path, is_shared=True) as temporary:
            temporary.write_text(reason, encoding="utf-8")

    def read(self, key: str, features: Half, tokens: Half) -> None:
        """Fills arrays of the shapes of one video. Raises OSError or ValueError."""
        values = np.load(self._file(key), mmap_mode="r")
        features[...] = values[: self.sizes[0]].reshape(self.shapes[0])
        tokens[...] = values[self.sizes[0] :].reshape(self.shapes[1])

    def check_space(self, num: int) -> str:
        """The size of ``num`` more files, as text. Raises ValueError if the disk has less."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = num * self.num_bytes, shutil.disk_usage(self.folder).free
        size = f"{needed / 1e9:.3g} GB ({num} of {self.num_bytes / 1e6:.3g} MB)"
        if needed > free:
            raise ValueError(
                f"the outputs of the tower need {size}, and {self.folder} has {free / 1e9:.3g} GB: lower "
                "num_cached_views or num_validation_videos, or give another cache_folder"
            )
        return size


def _npy(features: torch.Tensor, tokens: torch.Tensor) -> memoryview:
    content = io.BytesIO()
    np.save(content, torch.cat((features.flatten(), tokens.flatten())).numpy())
    return content.getbuffer()


class ContentDigests:
    """sha256 of files, remembered by path, size and time of change."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "digests.json"
        self._known: dict[str, list[Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def of(self, path: Path) -> str:
        """Empty if the file cannot be read. Thread-safe."""
        try:
            facts = path.stat()
            known = self._known.get(str(path.resolve()))
            if known is not None and known[:2] == [facts.st_size, facts.st_mtime_ns]:
                return str(known[2])
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""
        self._known[str(path.resolve())] = [facts.st_size, facts.st_mtime_ns, digest]
        return digest

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(self.file, is_shared=True) as temporary:
            temporary.write_text(json.dumps(self._known))
