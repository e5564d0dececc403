"""The classifier that the service owns: video encoder, label encoder and scoring on one torch device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.classifier import LabelDescription
from vidlex.model.kernel.label_encoder import KernelLabelEncoder
from vidlex.model.pretrained.label_encoder import PretrainedLabelEncoder
from vidlex.model.scoring import Scorer
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.pauses import pause
from vidlex.model.video.precision import Precision, choose_encoder

MAX_FRAMES_PER_PASS = 256  # bounds the memory of a request


class TorchClassifier:
    def __init__(
        self,
        *,
        id: str,
        fingerprint: str,
        video: VideoEncoder,
        label: LabelEncoder | KernelLabelEncoder | ClipLabelEncoder | PretrainedLabelEncoder,
        scorer: Scorer,
        geometry: FrameGeometry,
        default_threshold: float,
        device: str,
        precision: Precision,
        info: dict[str, Any],
        calibration: DefaultCalibration | None = None,
    ) -> None:
        self.id, self.fingerprint, self.device = id, fingerprint, device
        self.scorer, self.geometry, self.default_threshold = scorer, geometry, default_threshold
        self.calibration = calibration
        self.num_frames = video.config.num_frames
        self.video = video.to(device).eval()
        self.label = label.to(device).eval()
        if isinstance(self.label, LabelEncoder | KernelLabelEncoder):
            self.label.optimize_for_inference()
        side = geometry.image_size
        chosen = choose_encoder(
            self.video, precision=precision, image_size=side, scorer=scorer, fingerprint=fingerprint
        )
        self._encoder = chosen.encoder
        self._info = info | {"encoder": chosen.name}
        self.dim = int(self.encode_video([np.zeros((1, side, side, 3), np.uint8)]).shape[1])
        if calibration is not None and calibration.statistics.dim != self.dim:
            raise ValueError(f"a calibration of {calibration.statistics.dim} dimensions, vectors of {self.dim}")

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        out: list[NDArray[np.float32] | None] = [None] * len(frames)
        by_length: dict[int, list[int]] = {}  # videos of equal length share a pass
        for index, video in enumerate(frames):
            by_length.setdefault(len(video), []).append(index)
        for length, members in by_length.items():
            videos_per_pass = max(1, MAX_FRAMES_PER_PASS // length)
            for start in range(0, len(members), videos_per_pass):
                chunk = members[start : start + videos_per_pass]
                stacked = torch.from_numpy(np.stack([frames[i] for i in chunk]))  # [B, T, H, W, 3]
                features = self._encoder.encode_video(stacked.to(self.device)).cpu().numpy()  # [B, D]
                for i, feature in zip(chunk, features, strict=True):
                    out[i] = feature
                pause()
        return np.stack([f for f in out if f is not None])

    def check_label(self, name: str) -> None:
        self.label.check_label(name)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self.label.encode_labels(list(names)).float().cpu().numpy()
        return features

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        with torch.inference_mode():
            return self.label.describe_labels(list(names))

    def info(self) -> dict[str, Any]:
        return dict(self._info)
