"""The network that training optimises: both encoders, and scale and bias of the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.config import LabelEncoderConfig
from vidlex.model.extensions.features import video_head
from vidlex.model.scoring import similarity_to_logit
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.optim import ParameterGroup, make_optimizer
from vidlex.model.train.recipe import Part, Stage
from vidlex.model.video.encoder import Trunk, VideoEncoder

INITIAL_SCALE, INITIAL_BIAS = 15.0, -7.0


class OpenVocabularyNetwork(nn.Module):
    def __init__(self, video: VideoEncoder, label: LabelEncoder) -> None:
        super().__init__()
        self.video, self.label = video, label
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.bias = nn.Parameter(torch.tensor(INITIAL_BIAS))

    @property
    def device(self) -> torch.device:
        return self.bias.device

    def set_label_config(self, config: LabelEncoderConfig) -> None:
        """For settings of extensions that are set after training: features may change their width."""
        self.label.config = config
        self.video.head = video_head(config)

    def logits(self, video_features: Tensor, label_features: Tensor) -> Tensor:
        # [B, D], [V, D] -> [B, V]
        with torch.autocast(video_features.device.type, enabled=False):
            similarity = video_features.float() @ label_features.float().T
            return similarity_to_logit(similarity, self.log_scale.exp(), self.bias)

    def video_features(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """[B, T, 3, H, W] uint8 or a Trunk -> [B, D] unit features with gradient to the branch."""
        return F.normalize(self.video(frames, alpha), dim=-1)

    def frame_means(self, frames: Tensor | Trunk) -> Tensor:
        """[B, T, 3, H, W] uint8 or a Trunk -> [B, D] unit features of the frozen tower."""
        trunk = frames if isinstance(frames, Trunk) else self.video.compute_trunk(frames)
        return F.normalize(trunk.frame_features.float().mean(dim=1), dim=-1)

    def parts(self) -> dict[Part, Sequence[nn.Parameter]]:
        new, copied = self.video.new_and_copied_parameters()
        return {
            "new": new,
            "copied": copied,
            "tower": list(self.video.visual.parameters()),
            "prompting": list(self.label.prompting.parameters()),
            "prefixes": [self.label.prefixes],
            "scoring": [self.log_scale, self.bias],
        }

    def optimizer(self, stage: Stage, config: FitConfig) -> torch.optim.AdamW:
        """Over the parts that train in the stage; the others are frozen."""
        parts = self.parts()
        for part, parameters in parts.items():
            for parameter in parameters:
                parameter.requires_grad_(part in stage.rates)
        groups = [ParameterGroup(parts[part], rate) for part, rate in stage.rates.items()]
        return make_optimizer(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98))
