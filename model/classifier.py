from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry


class LabelTextError(ValueError):
    """The label cannot be encoded whole, such as one with too many tokens. Texts are never truncated."""


@dataclass(frozen=True)
class LabelDescription:
    prompts: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...] = ()  # [N][K] texts decoded by the LLM


class Classifier(Protocol):
    """Encoders and scoring of one checkpoint. Not thread-safe: one thread owns the classifier and its device.

    Methods with labels raise LabelTextError for a name that cannot be encoded whole.
    """

    id: str  # such as ``photo-small`` or ``open_clip:ViT-B-16/openai``
    # hash of architecture, weights, preprocessing and prompts; vectors of two fingerprints are not comparable
    fingerprint: str
    dim: int  # D
    geometry: FrameGeometry
    num_frames: int  # default of a request
    scorer: Scorer
    calibration: DefaultCalibration | None  # shipped with the checkpoint
    default_threshold: float  # probability from which a label without its own threshold matches
    device: str

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """B videos [T, H, W, 3] uint8 RGB at ``geometry``, of any T each -> [B, D] float32 unit vectors."""
        ...

    def check_label(self, name: str) -> None: ...  # tokenises, runs no model

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]: ...  # [V, D], of length at most 1

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]: ...

    def info(self) -> dict[str, Any]: ...  # JSON values
