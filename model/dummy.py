"""A classifier without weights whose scores can be computed by hand (``VIDLEX_MODEL=dummy``).

A video's feature is its mean colour (R, G, B), normalised. The feature of a colour word is that colour, normalised
(red = 1,0,0; yellow = 1,1,0 / sqrt 2); any other label gets the unit vector of axis ``len(name) % 3``. Scores are
``sigmoid(10 * s - 5)``: a purely red video scores 0.9933 for "red" and 0.0067 for "green".

``dummy:2`` acts as a second checkpoint with its own fingerprint: label vectors are rotated by one axis
(red = 0,1,0; blue = 1,0,0), so a purely red video scores 0.9933 for "blue". ``dummy:3`` rotates by two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.classifier import LabelDescription, LabelTextError
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry

COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "white": (1, 1, 1),
}
MAX_WORDS = 16


class DummyClassifier:
    def __init__(self, version: int = 1) -> None:
        self.id = "dummy" if version == 1 else f"dummy:{version}"
        self._shift = version - 1
        self.fingerprint = f"dummy-{version}"
        self.dim = 3
        self.geometry = FrameGeometry(image_size=32, resize_mode="squash")
        self.num_frames = 4
        self.scorer = Scorer(logit_scale=10.0, logit_bias=-5.0)
        self.calibration: DefaultCalibration | None = None
        self.default_threshold = 0.5
        self.device = "cpu"

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        means = np.stack([f.reshape(-1, 3).mean(axis=0, dtype=np.float64) for f in frames])  # [B, 3]
        return _normalize(means)

    def check_label(self, name: str) -> None:
        if len(name.split()) > MAX_WORDS:
            raise LabelTextError(f"the label has more than {MAX_WORDS} words")

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        for name in names:
            self.check_label(name)
        axes = np.eye(3)
        rows = [COLOURS.get(name.lower(), axes[len(name) % 3]) for name in names]
        return _normalize(np.roll(np.asarray(rows, dtype=np.float64).reshape(-1, 3), self._shift, axis=1))

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        return [LabelDescription((name,)) for name in names]

    def info(self) -> dict[str, Any]:
        return {"backbone": "mean colour", "llm": None, "dim": self.dim}


def create_dummy(spec: str) -> DummyClassifier | None:
    name, colon, version = spec.partition(":")
    if name != "dummy" or (colon and not (version.isascii() and version.isdigit() and 0 < int(version) < 100)):
        return None
    return DummyClassifier(int(version or 1))


def _normalize(x: NDArray[np.float64]) -> NDArray[np.float32]:  # a zero row (a black video) stays zero
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return (x / np.where(norm > 0, norm, 1.0)).astype(np.float32)
