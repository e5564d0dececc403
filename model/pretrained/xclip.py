from __future__ import annotations

from typing import Any

from torch import Tensor

from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.scoring import Scorer, zero_shot_scorer


class XClipModel(VideoTextModel):
    """X-CLIP (Ni et al., ECCV 2022) without its video-specific prompts.

    The prompt generator adds to each text a term that depends on the video's patches. A label would then have another
    vector for every video, and could neither be stored nor searched. The text feature is the one before that term.
    """

    reads_videos = False
    has_fixed_num_frames = True  # the cross-frame attention and the position embeddings of the frames have this size

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.num_frames = int(model.config.vision_config.num_frames)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.get_video_features(pixel_values=pixels).pooler_output
        return features

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features

    def scorer(self) -> Scorer:
        return zero_shot_scorer(float(self.model.logit_scale.exp()), None)
