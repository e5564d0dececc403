"""What the service needs of a model, whatever is behind it: the one seam between training and serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry


class LabelTextError(ValueError):
    """The label's text cannot be encoded whole (too many tokens, say). Never cut silently."""


@dataclass(frozen=True)
class LabelDescription:
    """How an encoder reads a label, for people."""

    prompts: tuple[str, ...]
    """The texts that hold the label, as the encoder gets them."""
    attributes: tuple[tuple[str, ...], ...] = ()
    """What the LLM wrote under each of its N prefixes: K texts each. Empty for an encoder without an LLM."""


class Classifier(Protocol):
    """Encoders and scoring of one checkpoint. Not thread-safe: one thread owns it (and its device)."""

    id: str
    """Name for people, such as ``emoji-small`` or ``open_clip:ViT-B-16/openai``."""
    fingerprint: str
    """Hash of architecture, weights, preprocessing and prompts. Vectors of two fingerprints never mix."""
    dim: int
    """D, the length of a feature."""
    geometry: FrameGeometry
    num_frames: int
    """Frames per video that the model was trained with; a request may ask for others."""
    scorer: Scorer
    default_threshold: float
    """Probability from which a label counts as matched, when it has no threshold of its own."""
    device: str

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Videos, each [T, H, W, 3] uint8 RGB at ``geometry`` (T may differ), to [B, D] float32 unit vectors."""
        ...

    def check_label(self, name: str) -> None:
        """Raise LabelTextError when ``name`` cannot be encoded whole. Cheap: tokenises, runs no model."""
        ...

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Label names to [V, D] float32 (length at most 1). Raises LabelTextError."""
        ...

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        """How the encoder reads each name. Raises LabelTextError."""
        ...

    def info(self) -> dict[str, Any]:
        """Facts for people: backbone, LLM, sizes, licence."""
        ...
