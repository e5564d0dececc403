from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.scoring import similarity_to_logit
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.video.encoder import Trunk, VideoEncoder


class OpenVocabularyNetwork(nn.Module):
    def __init__(self, video: VideoEncoder, label: LabelEncoder, *, scale: float = 15.0, bias: float = -7.0) -> None:
        super().__init__()
        self.video, self.label = video, label
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def set_name_trust(self, trust: float) -> None:
        """Call after training: above 0, features of videos and labels have twice the dimensions."""
        self.label.config = replace(self.label.config, name_trust=trust)
        self.video.with_frame_mean = trust > 0

    def logits(self, video_features: Tensor, label_features: Tensor) -> Tensor:
        # [B, D], [V, D] -> [B, V]
        with torch.autocast(video_features.device.type, enabled=False):
            similarity = video_features.float() @ label_features.float().T
            return similarity_to_logit(similarity, self.log_scale.exp(), self.bias)

    def video_features(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """[B, T, 3, H, W] uint8 or a Trunk -> [B, D] unit features with gradient to the branch."""
        return F.normalize(self.video(frames, alpha), dim=-1)


def add_state_noise(states: Tensor, network: OpenVocabularyNetwork, config: FitConfig, step: int) -> Tensor:
    """``states`` [V, N, K, L, d] on the network's device, with ``state_noise`` added (not in the paper).

    Training with noise penalises the slope of the output (Bishop, Neural Computation 1995). The noise is the same for
    every micro-batch of a step.
    """
    states = states.to(network.bias.device, torch.float32)
    if not config.state_noise:
        return states
    generator = generator_for(config.seed, Stream.STATE_NOISE, step, states.device)
    noise = torch.randn(states.shape, generator=generator, device=states.device)
    return states + config.state_noise * network.label.state_std * noise
