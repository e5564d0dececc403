"""What the paper compares with, trained by the same loop on the same videos and labels as our method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.dualcoop import LOGIT_SCALE, DualCoOpLabelEncoder, aggregate, frame_places
from vidlex.model.config import BaselineConfig, Method
from vidlex.model.emoji.world import World
from vidlex.model.scoring import similarity_to_logit
from vidlex.model.train.fit import VALIDATION_SEED, figures_by_kind
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.losses import asymmetric, weighted_bce
from vidlex.model.train.optim import Group, make_optimizer
from vidlex.model.train.processes import WHOLE, Part
from vidlex.model.train.step_videos import StepVideos, VideoSource
from vidlex.model.train.task import LabelChoice
from vidlex.model.video.encoder import Trunk, VideoEncoder

EVALUATION_BATCH = 32


class BaselineNetwork(nn.Module):
    """Frame mean of CLIP's image tower and a label encoder; ``train_towers`` learns both towers (ViFi-CLIP).

    DualCoOp has its own fixed scale and no bias; the others learn scale and bias as our method does.
    """

    def __init__(
        self, clip: nn.Module, video: VideoEncoder, label: ClipLabelEncoder, *, places: str, train_towers: bool
    ) -> None:
        super().__init__()
        self.video, self.label, self.places, self.train_towers = video, label, places, train_towers
        self.is_dual = isinstance(label, DualCoOpLabelEncoder)
        self.log_scale = nn.Parameter(torch.tensor(math.log(2 * LOGIT_SCALE if self.is_dual else 15.0)))
        self.bias = nn.Parameter(torch.tensor(0.0 if self.is_dual else -7.0))
        if self.is_dual:
            self.log_scale.requires_grad_(False)
            self.bias.requires_grad_(False)
        if train_towers:
            self.clip = clip.requires_grad_(True)
            for name in ("logit_scale", "logit_bias"):  # ours stand in their place
                if isinstance(value := getattr(clip, name, None), nn.Parameter):
                    value.requires_grad_(False)
            label.clip_text.token_embedding.requires_grad_(False)  # as the original keeps it

    def frame_features(self, frames: Tensor | Trunk) -> Tensor:
        """[B, T, 3, H, W] uint8, or what the frozen tower made of it, -> [B, T, D] float32, not normalised, with
        gradient where the tower learns."""
        if isinstance(frames, Trunk):
            return frames.frame_features.float()
        b, t = frames.shape[:2]
        with torch.set_grad_enabled(self.train_towers and torch.is_grad_enabled()):
            features: Tensor = self.video.visual(self.video.to_pixels(frames).flatten(0, 1))
        return features.float().view(b, t, -1)

    def logits(self, frame_features: Tensor, names: Sequence[str]) -> Tensor:
        """[B, T, D] -> [B, V] in float32."""
        if isinstance(self.label, DualCoOpLabelEncoder) and self.places == "frames":
            positive, negative = self.label.both(names)
            with torch.autocast(frame_features.device.type, enabled=False):
                return aggregate(frame_places(frame_features), positive.float(), negative.float())
        return self.logits_from_features(frame_features, self.label(names))

    def logits_from_features(self, frame_features: Tensor, label_features: Tensor) -> Tensor:
        """[B, T, D] and [V, D] -> [B, V] in float32, for labels that are one vector each."""
        with torch.autocast(frame_features.device.type, enabled=False):
            videos = F.normalize(frame_features.mean(dim=1), dim=-1)
            similarity: Tensor = videos @ label_features.float().T
            return similarity_to_logit(similarity, self.log_scale.exp(), self.bias)


class BaselineTask:
    """Videos and labels of the world, drawn step by step as for our joint stage."""

    def __init__(
        self,
        method: Method,
        network: BaselineNetwork,
        worlds: Mapping[str, World],
        config: FitConfig,
        baseline: BaselineConfig,
    ) -> None:
        self.name: str = method
        self.network, self.worlds, self.config = network, worlds, config
        self.labels = worlds["train"].labels
        self.choice = LabelChoice.of(worlds["train"], config)
        self.module = network
        self.videos: VideoSource = StepVideos(worlds["train"], config, network.video.config.num_frames)
        scoring = [network.log_scale, network.bias]
        known = {id(p) for p in scoring}
        learned = [p for p in (*network.parameters(), *network.label.parameters()) if id(p) not in known]
        rate = baseline.learning_rate or (1e-5 if network.train_towers else 2e-3)
        self.optimizer = make_optimizer(
            [Group([*dict.fromkeys(learned)], rate), Group(scoring, 5 * config.label_learning_rate)],
            weight_decay=0.0 if not network.train_towers else config.weight_decay,
            betas=(0.9, 0.98),
        )

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return self.training_part(step, WHOLE)

    def training_part(self, step: int, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        """A part is some of the step's videos, against all labels of the step."""
        config = self.config
        batch = self.videos.draw(step, part)
        index, weights = self.choice.draw(batch.all_targets, config, batch.generator)
        names = [self.labels[i] for i in index.tolist()]
        logits = self.network.logits(self.network.frame_features(batch.frames.to(config.device)), names)
        targets = batch.targets[:, index].to(config.device)
        weights = weights.to(config.device)
        num_positives = batch.all_targets[:, index].sum()
        if self.network.is_dual:
            return asymmetric(logits, targets, weights, num_positives) * part.count, {}
        loss = weighted_bce(logits, targets, weights, config.negative_weight, num_positives)
        return loss * part.count, {"scale": self.network.log_scale.exp().item(), "bias": self.network.bias.item()}

    def evaluate(self) -> Mapping[str, float]:
        """Micro AUPR over all labels, and by kind, on validation videos."""
        world = self.worlds["val"]
        num_videos = min(256, self.config.num_validation_videos)
        return figures_by_kind(*evaluate_baseline(self.network, world, self.config, num_videos), world)


@torch.no_grad()
def evaluate_baseline(
    network: BaselineNetwork, world: World, config: FitConfig, num_videos: int
) -> tuple[Tensor, Tensor]:
    """Logits and targets [n, V] of the same validation videos as our method's, against every label of the world."""
    features, targets = [], []
    for chunk in range((num_videos + 63) // 64):
        size = min(64, num_videos - 64 * chunk)
        sample = world.videos(size, network.video.config.num_frames, world.generator(VALIDATION_SEED + chunk))
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.bf16)):
            features.append(network.frame_features(sample.frames.to(config.device)))
        targets.append(sample.targets)
    labels = [list(world.labels[i : i + EVALUATION_BATCH]) for i in range(0, len(world.labels), EVALUATION_BATCH)]
    frames = torch.cat(features)
    return torch.cat([network.logits(frames, names).cpu() for names in labels], dim=1), torch.cat(targets)
