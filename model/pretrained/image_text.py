"""CLIP, SigLIP and SigLIP 2: image encoders. A video's feature is the mean of its frames' features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.scoring import Scorer, zero_shot_scorer


class ImageTextModel(VideoTextModel):
    """``CLIPModel`` and ``SiglipModel``, which is also the class of SigLIP 2 with a fixed image size."""

    reads_videos = False

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        batch, num_frames = pixels.shape[:2]
        features = self.encode_frames(pixels.flatten(0, 1))  # [B * T, D]
        return features.view(batch, num_frames, -1).mean(dim=1)

    def encode_frames(self, pixels: Tensor) -> Tensor:  # [B * T, 3, H, W] -> [B * T, D]
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features

    def scorer(self) -> Scorer:
        bias = getattr(self.model, "logit_bias", None)
        return zero_shot_scorer(float(self.model.logit_scale.exp()), None if bias is None else float(bias))


class NaflexModel(ImageTextModel):
    """``Siglip2Model``: reads pictures of any shape as a list of patches; here they are square."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.patch_size = int(model.config.vision_config.patch_size)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        size = self.patch_size
        side = pixels.shape[-1] // size
        patches = pixels.reshape(len(pixels), -1, side, size, side, size)  # [n, 3, rows, size, columns, size]
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [n, P, size * size * 3]
        features: Tensor = self.model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device),
            spatial_shapes=torch.full((len(patches), 2), side, device=pixels.device),
        ).pooler_output
        return features
