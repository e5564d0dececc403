from __future__ import annotations

import torch
from torch import Tensor

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.pretrained.preprocessing import Preprocessing
from vidlex.model.video.encoder import Trunk, VideoEncoder

MAX_FRAMES = 256  # per pass: a model with a fixed number may read more frames than it was given


class PretrainedVideoEncoder(VideoEncoder):
    """The video encoder of a transformers model, without a branch; for serving only."""

    def __init__(self, model: VideoTextModel, preprocessing: Preprocessing) -> None:
        config = VideoEncoderConfig(num_branch_blocks=0, num_frames=model.num_frames)
        super().__init__(model, config, mean=preprocessing.mean, std=preprocessing.std)
        self.crop_size = preprocessing.crop_size

    def forward(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        if not isinstance(frames, Tensor):
            raise TypeError("a transformers model has no trunk")
        if self.visual.has_fixed_num_frames:
            frames = frames[:, spread(frames.shape[1], self.visual.num_frames)]
        start = (frames.shape[-1] - self.crop_size) // 2
        inside = slice(start, start + self.crop_size)
        parts = torch.split(frames[..., inside, inside], max(1, MAX_FRAMES // frames.shape[1]))
        return torch.cat([self.visual.encode_pixels(self.to_pixels(part)) for part in parts])


def spread(num_given: int, num_wanted: int) -> list[int]:
    """Of ``num_given`` frames those at the centres of ``num_wanted`` equal parts; too few are repeated, in order."""
    return [(2 * i + 1) * num_given // (2 * num_wanted) for i in range(num_wanted)]
