"""Video encoder of ``KernelConfig``: an image classifier's features for what a frame shows, a branch for what moves.

One pass of the tower per frame gives both: its last feature map, and the map that the motion branch reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.config import KernelConfig, VideoEncoderConfig
from vidlex.model.video.encoder import Trunk, VideoEncoder
from vidlex.model.video.motion_branch import MotionBranch, MotionBranchConfig

MOTION_STAGE = 4  # of the tower, whose map the motion branch reads
MAX_FRAMES_PER_PASS = 4  # on a CPU; larger passes are slower, as their maps leave its cache
MAX_FRAMES_PER_PASS_GPU = 128


class Maps(NamedTuple):
    """Of n frames."""

    features: Tensor  # [n, D'] mean of the last feature map over its positions
    motion: Tensor  # [n, C, h, w] map of MOTION_STAGE; [n, 0] without a motion branch


class StillMotionEncoder(VideoEncoder):
    """``tower`` is timm's EfficientNet with its classifier, which is not used. For serving only.

    Raises ValueError for a tower of another kind or width.
    """

    centre: Tensor

    def __init__(
        self, tower: Any, config: KernelConfig, *, num_frames: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        from timm.models.efficientnet import EfficientNet

        if not isinstance(tower, EfficientNet):
            raise ValueError(f"the image tower must be an EfficientNet of timm, not a {type(tower).__name__}")
        if tower.num_features != config.num_channels:
            raise ValueError(f"the image tower has {tower.num_features} channels, not {config.num_channels}")
        video = VideoEncoderConfig(num_branch_blocks=0, num_frames=num_frames)
        super().__init__(tower, video, mean=mean, std=std)
        self.kernel = config
        self.register_buffer("centre", torch.zeros(config.num_channels))
        self.motion = None if config.motion is None else MotionBranch(MotionBranchConfig.from_json(config.motion))
        self.requires_grad_(False).eval()

    def stored_state_dict(self) -> dict[str, Tensor]:  # what is not the tower's
        return {name: value for name, value in self.state_dict().items() if not name.startswith("visual.")}

    def forward(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        if not isinstance(frames, Tensor):
            raise TypeError("this encoder has no trunk")
        b, t = frames.shape[:2]  # of [B, T, 3, H, W] uint8
        parts = torch.split(frames.flatten(0, 1), self.max_frames_per_pass)
        return self.combine([self.run_tower(self.to_pixels(part)) for part in parts], b, t)

    @property
    def max_frames_per_pass(self) -> int:
        return MAX_FRAMES_PER_PASS if self.mean.device.type == "cpu" else MAX_FRAMES_PER_PASS_GPU

    def run_tower(self, pixels: Tensor) -> Maps:  # [n, 3, H, W]
        tower = self.visual
        x = tower.bn1(tower.conv_stem(pixels))
        motion = x.new_zeros(len(x), 0)
        for stage, blocks in enumerate(tower.blocks):
            x = blocks(x)
            if stage == MOTION_STAGE and self.motion is not None:
                motion = x
        return Maps(tower.bn2(tower.conv_head(x)).mean((2, 3)), motion)

    def combine(self, parts: Sequence[Maps], num_videos: int, num_frames: int) -> Tensor:
        """Maps of all frames of the videos, in their order -> [B, D] float32 unit vectors."""
        config = self.kernel
        features = torch.cat([part.features for part in parts]).float().view(num_videos, num_frames, -1)
        z = F.normalize(features.mean(dim=1) - self.centre, dim=-1)  # [B, num_channels]
        columns = [z, z.new_full((num_videos, 1), config.constant)]
        if self.motion is not None:
            maps = torch.cat([part.motion for part in parts]).float()
            h = self.motion_feature(maps.view(num_videos, num_frames, *maps.shape[1:]))  # [B, M]
            rest = (1 - h.square().sum(dim=1, keepdim=True)).clamp_min(0).sqrt()
            columns += [config.motion_weight * h, config.motion_weight * rest]
        return torch.cat(columns, dim=1).div_(config.video_length)

    def motion_feature(self, maps: Tensor) -> Tensor:
        """[B, T, C, h, w] -> the motion branch's logits [B, M], scaled so that no vector is longer than 1."""
        assert self.motion is not None
        config = self.motion.config
        scores: Tensor = self.motion(maps)
        return scores / (config.max_score * math.sqrt(config.num_labels))
