from __future__ import annotations

from typing import Any

from torch import Tensor

from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.scoring import Scorer, zero_shot_scorer

TEMPERATURE = 0.01  # of the authors' zero-shot example; the checkpoint has none


class VideoPrismModel(VideoTextModel):
    """VideoPrism with its text encoder, ``VideoPrismClipModel``: features only.

    The model's own logits are divided by their sum over the videos or the texts of the batch: a label's score would
    depend on the other labels.
    """

    has_fixed_num_frames = True  # learned position embeddings of the frames

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.num_frames = int(model.config.vision_config.num_frames)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.get_video_features(pixel_values_videos=pixels).pooler_output
        return features.reshape(len(pixels), -1)  # from [B, 1, D]

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features

    def scorer(self) -> Scorer:
        return zero_shot_scorer(1 / TEMPERATURE, None)
