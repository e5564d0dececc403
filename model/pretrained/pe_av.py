from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.scoring import Scorer
from vidlex.model.specs import ModelNotFound


class PeAvModel(VideoTextModel):
    """The video and text encoders of PE-AV: ``PeVideoModel``, or that part of ``PeAudioVideoModel`` without the audio.

    The model's logit is ``scale * <video, text> + bias`` with vectors of any length. Here both are divided by an upper
    bound of their length, and the video gets one more coordinate that brings its length to 1, the text a 0. So the
    product, and with it the probability, stays the model's own.
    """

    num_frames = 16
    pads_texts = False
    has_unit_features = False

    @classmethod
    def load_network(cls, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
        """``PeAudioVideoModel.from_pretrained`` fails with timm 1.0.31, on a buffer that it takes for a tied weight."""
        from transformers import AutoConfig, PeVideoModel

        names = ("local_files_only", "trust_remote_code")
        config = AutoConfig.from_pretrained(folder, **{name: options[name] for name in names})
        if config.model_type == "pe_audio_video":
            config = config.video_config
        kind: Any = PeVideoModel
        with redirect_stdout(sys.stderr):  # its constructor prints a remark on a docstring
            loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
                folder, config=config, output_loading_info=True, **options
            )
        return loaded

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._max_video_length = _max_length(self.model.video_head)
        self._max_text_length = _max_length(self.model.text_video_head)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        # ``get_video_embeds`` and ``get_text_video_embeds`` call methods that transformers 5.23 does not have
        pooled = self.model.video_encoder(pixel_values_videos=pixels).pooler_output
        feature = self.model.video_head(pooled).float() / self._max_video_length
        rest = (1 - feature.square().sum(dim=-1, keepdim=True)).clamp(min=0).sqrt()
        return torch.cat((feature, rest), dim=-1)

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        states = self.model.text_model(**tokens, output_hidden_states=-1).hidden_states[-1]
        feature = self.model.text_video_head(states[:, 0]).float() / self._max_text_length
        return F.pad(feature, (0, 1))

    def scorer(self) -> Scorer:
        scale, bias = float(self.model.text_video_logit_scale), float(self.model.text_video_logit_bias)
        if not scale > 0:
            raise ModelNotFound(f"the model's text_video_logit_scale is {scale}: its video and text are not trained")
        return Scorer(scale * self._max_video_length * self._max_text_length, bias)


def _max_length(head: Any) -> float:
    """Upper bound of the length of ``proj(layer_norm(x))``: without weight and bias, a layer norm's output is at most
    ``sqrt(width)`` long."""
    norm, matrix = head.layer_norm, head.proj.weight.double()  # [D, width]
    stretched = torch.linalg.matrix_norm(matrix * norm.weight.double(), ord=2) * matrix.shape[1] ** 0.5
    return float(stretched + torch.linalg.vector_norm(matrix @ norm.bias.double()))
