"""Writes a checkpoint with the method "kernel"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.calibration.stored import to_stored
from vidlex.model.checkpoint import CheckpointConfig, ClipSource, digest_llm, save_checkpoint
from vidlex.model.config import KernelConfig, LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.kernel.loading import MOTION, create_tower, load_encoders
from vidlex.model.scoring import Calibration, Scorer
from vidlex.model.types import FrameGeometry, ResizeMode
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.tower import DEFAULT_TOWER

# stored in float16; an error of one entry hardly changes a sum over hundreds of them
HALF = ("label.projection", "label.kinds", "label.landmarks", "label.landmark_kinds", "label.alpha")


def write_checkpoint(
    folder: Path,
    config: KernelConfig,
    tensors: Mapping[str, Tensor | NDArray[np.floating]],
    *,
    id: str,
    landmark_names: Sequence[str] = (),
    tower: str = DEFAULT_TOWER,
    resize_mode: ResizeMode = "shortest",
    num_frames: int = 8,
    scorer_calibration: Calibration = Calibration(),
    calibration: DefaultCalibration | None = None,
    default_threshold: float = 0.5,
    licence: str = "Apache-2.0",
) -> None:
    """``tensors``: "label.*", "video.centre" and "motion.*" as ``loading.stored_tensors`` names them. They are checked:
    raises CheckpointError if they do not fit.

    ``landmark_names``, one per landmark, become the checkpoint's trained labels.
    """
    if len(landmark_names) not in (0, config.num_landmarks):
        raise ValueError(f"{len(landmark_names)} names of {config.num_landmarks} landmarks")
    image_tower = create_tower(tower)
    entry, statistics = (None, {}) if calibration is None else to_stored(calibration)
    checkpoint = CheckpointConfig(
        id=id,
        clip=ClipSource(
            source=tower,
            mean=image_tower.mean,
            std=image_tower.std,
            geometry=FrameGeometry(image_tower.image_size, resize_mode),
            digest=image_tower.digest,
        ),
        video=VideoEncoderConfig(num_branch_blocks=0, num_frames=num_frames),
        label=LabelEncoderConfig.from_dict({}),
        scorer=Scorer(config.logit_scale, 0.0, scorer_calibration),
        default_threshold=default_threshold,
        llm_digest=digest_llm(fetch_llm(config.llm)),
        licence=licence,
        trained_labels=tuple(landmark_names),
        method="kernel",
        kernel=config,
        calibration=entry,
    )
    stored = {name: torch.as_tensor(value).float() for name, value in tensors.items()}
    load_encoders(checkpoint, stored)
    stored = {
        name: value.half() if name in HALF or name.startswith(MOTION) else value for name, value in stored.items()
    }
    stored |= {name: torch.from_numpy(value) for name, value in statistics.items()}
    save_checkpoint(folder, checkpoint, stored, half=False)
