"""Settings of the training data. The field docstrings are the help texts of ``vidlex train fit``."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OtherLabels = Literal["unknown", "absent"]


@dataclass(frozen=True)
class EmojiConfig:
    """The procedural world."""

    num_more_pairs: int = 0
    """Additional training labels that name a noun with its action."""
    num_pool_videos: int = 0
    """Render this many videos once, run the frozen tower on them once, and train on these; 0: new videos in every
    step."""
    one_sprite_until: float = 0.35
    """Share of the joint stage over which videos with one sprite fall from all to half."""
    action_weight: float = 3.0
    """Weight of action labels in the loss."""
    pair_weight: float = 1.0
    """Weight of pair labels (a noun with an action) in the loss."""

    def __post_init__(self) -> None:
        for name in ("num_more_pairs", "num_pool_videos"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


@dataclass(frozen=True)
class DataConfig:
    """Manifests of real videos. Paths of videos are relative to their manifest."""

    train: tuple[str, ...] = ()
    """A manifest.jsonl with training videos; may be repeated. `A.jsonl:2` draws each video of A twice as often as one
    without a weight. `emoji` (default): the procedural world."""
    validation: tuple[str, ...] = ()
    """A manifest.jsonl with validation videos; may be repeated. Default: the validation split of the training
    manifests."""
    train_split: str = "train"
    """Split of the training manifests to train on; entries without a split belong to every split."""
    validation_split: str = "val"
    """Split of the validation manifests to validate on."""
    other_labels: OtherLabels = "unknown"
    """What a label means in a video of a dataset that does not have the label in its vocabulary: nothing (unknown), or
    that it is absent. Within a dataset its own rule counts: dataset.json, `closed` entries and listed negatives."""
    rare_label_power: float = 0.0
    """Videos with rare labels are drawn more often: by the count of their rarest label to the power of minus this. 0:
    equally; 0.5: square root; 1: every label about equally often."""
    kind_weight: tuple[str, ...] = ()
    """Weight of the labels of a kind in the loss, as KIND=WEIGHT; may be repeated. Default: 1."""
    always_drawn_kind: tuple[str, ...] = ()
    """Kind whose labels are among those of every step; may be repeated. For kinds with few labels."""
    crop_scale: float = 0.5
    """Smallest area of a random crop, relative to the picture; 1: no crop."""
    flip: bool = False
    """Mirror half of the videos. Not for labels with a direction, such as "moving left"."""
    colour: float = 0.2
    """Largest relative change of brightness, contrast and saturation of a video; 0: none."""
    time_jitter: float = 0.1
    """Largest part of a video that is left out before the first frame, and after the last; 0: none."""
    num_cached_views: int = 0
    """Views of each training video whose outputs of the frozen tower are kept on disk: later epochs do not decode. 1:
    the video itself; 2 or more: augmented ones too. 0: every epoch decodes and augments again."""
    cache_folder: Path | None = None
    """Folder of these outputs, which runs can share. Default: the folder `trunks` of the run."""
    num_decode_workers: int = 0
    """Decode processes; 0: one per core."""
    num_prefetched_steps: int = 4
    """Steps whose videos are read ahead."""
    decode_timeout_seconds: float = 60.0
    """Time after which the decoding of a video is ended; the video counts as broken."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale must be above 0 and at most 1, got {self.crop_scale}")
        if not (0 <= self.colour < 1 and 0 <= self.time_jitter < 0.5):
            raise ValueError("colour must be from 0 to 1 and time_jitter from 0 to 0.5, without the upper limit")
        for name in ("rare_label_power", "num_cached_views", "num_decode_workers", "num_prefetched_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative")
        if not 0 < self.decode_timeout_seconds <= threading.TIMEOUT_MAX:
            raise ValueError("decode_timeout_seconds must be positive and finite")
        self.weights_by_kind()

    def weights_by_kind(self) -> dict[str, float]:
        """Raises ValueError for another form than KIND=WEIGHT."""
        weights = {}
        for text in self.kind_weight:
            kind, sign, number = text.rpartition("=")
            try:
                weights[kind] = float(number)
            except ValueError:
                sign = ""
            if not sign or not kind or not 0 <= weights.get(kind, 0.0) < math.inf:
                raise ValueError(f"kind_weight must be KIND=WEIGHT, such as action=3, got {text!r}")
        return weights
