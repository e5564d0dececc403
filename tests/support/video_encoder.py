from __future__ import annotations

from typing import Any

import open_clip
import torch

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.video.encoder import VideoEncoder

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SIDE = 32


def make_encoder(blocks: int = 2, *, quick_gelu: bool = False, device: str = "cpu", **vision: Any) -> VideoEncoder:
    """All weights are random, including the branch's."""
    torch.manual_seed(0)
    tower = {"image_size": SIDE, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8} | vision
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(embed_dim=24, vision_cfg=tower, text_cfg=text, quick_gelu=quick_gelu).eval()
    encoder = VideoEncoder(clip.visual, VideoEncoderConfig(num_branch_blocks=blocks), mean=MEAN, std=STD).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return encoder.to(device)
