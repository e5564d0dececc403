"""The baselines of the paper, trained by the same loop on the same videos and labels as our method."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.dualcoop import LOGIT_SCALE, DualCoOpLabelEncoder, aggregate, frame_regions
from vidlex.model.config import BaselineConfig, Method
from vidlex.model.scoring import similarity_to_logit
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.label_sampling import sample_step_labels
from vidlex.model.train.loop.optim import ParameterGroup, make_optimizer
from vidlex.model.train.loop.processes import MicroBatch
from vidlex.model.train.losses import POSITIVE, UNKNOWN, weighted_bce
from vidlex.model.train.source import StepVideos, TrainingSource
from vidlex.model.train.validation import features_of_videos, metrics_by_kind
from vidlex.model.video.encoder import Trunk, VideoEncoder

EVALUATION_BATCH_LABELS = 32


class BaselineNetwork(nn.Module):
    def __init__(
        self, clip: nn.Module, video: VideoEncoder, label: ClipLabelEncoder, *, places: str, train_towers: bool
    ) -> None:
        super().__init__()
        self.video, self.label, self.places, self.train_towers = video, label, places, train_towers
        self.is_dual = isinstance(label, DualCoOpLabelEncoder)
        self.log_scale = nn.Parameter(torch.tensor(math.log(2 * LOGIT_SCALE if self.is_dual else 15.0)))
        self.bias = nn.Parameter(torch.tensor(0.0 if self.is_dual else -7.0))
        if self.is_dual:  # fixed scale, no bias
            self.log_scale.requires_grad_(False)
            self.bias.requires_grad_(False)
        if train_towers:  # ViFi-CLIP
            self.clip = clip.requires_grad_(True)
            for name in ("logit_scale", "logit_bias"):  # replaced by log_scale and bias
                if isinstance(value := getattr(clip, name, None), nn.Parameter):
                    value.requires_grad_(False)
            label.clip_text.token_embedding.requires_grad_(False)  # as in the original

    def frame_features(self, frames: Tensor | Trunk) -> Tensor:
        """[B, T, 3, H, W] uint8 or a Trunk -> [B, T, D] float32, not normalised."""
        if isinstance(frames, Trunk):
            return frames.frame_features.float()
        b, t = frames.shape[:2]
        with torch.set_grad_enabled(self.train_towers and torch.is_grad_enabled()):
            features: Tensor = self.video.visual(self.video.to_pixels(frames).flatten(0, 1))
        return features.float().view(b, t, -1)

    def logits(self, frame_features: Tensor, names: Sequence[str]) -> Tensor:
        # [B, T, D] -> [B, V]
        if isinstance(self.label, DualCoOpLabelEncoder) and self.places == "frames":
            positive, negative = self.label.encode_prompt_pair(names)
            with torch.autocast(frame_features.device.type, enabled=False):
                return aggregate(frame_regions(frame_features), positive.float(), negative.float())
        return self.logits_from_features(frame_features, self.label(names))

    def logits_from_features(self, frame_features: Tensor, label_features: Tensor) -> Tensor:
        # [B, T, D], [V, D] -> [B, V]
        with torch.autocast(frame_features.device.type, enabled=False):
            videos = F.normalize(frame_features.mean(dim=1), dim=-1)
            similarity: Tensor = videos @ label_features.float().T
            return similarity_to_logit(similarity, self.log_scale.exp(), self.bias)


class BaselineTask:
    def __init__(
        self,
        method: Method,
        network: BaselineNetwork,
        source: TrainingSource,
        config: FitConfig,
        baseline: BaselineConfig,
    ) -> None:
        self.name: str = method
        self.network, self.source, self.config = network, source, config
        self.labels = source.labels
        self.module = network
        self.videos: StepVideos = source
        self.waited_seconds = 0.0  # for videos
        scoring = [network.log_scale, network.bias]
        scoring_ids = {id(p) for p in scoring}
        others = [p for p in (*network.parameters(), *network.label.parameters()) if id(p) not in scoring_ids]
        rate = baseline.learning_rate or (1e-5 if network.train_towers else 2e-3)
        self.optimizer = make_optimizer(
            [
                ParameterGroup([*dict.fromkeys(others)], rate),
                ParameterGroup(scoring, 5 * config.label_learning_rate),
            ],
            weight_decay=0.0 if not network.train_towers else config.weight_decay,
            betas=(0.9, 0.98),
        )

    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        # Micro-batches divide the videos of the step; each has all labels of the step.
        config = self.config
        started = time.monotonic()
        batch = self.videos.draw(step, micro_batch)
        self.waited_seconds += time.monotonic() - started
        index, weights = sample_step_labels(self.labels, batch.all_targets, config, batch.generator)
        names = [self.labels.names[i] for i in index.tolist()]
        logits = self.network.logits(self.network.frame_features(batch.frames.to(config.device)), names)
        targets = batch.targets[:, index].to(config.device)
        weights = weights.to(config.device)
        num_positives = (batch.all_targets[:, index] == POSITIVE).sum()
        if self.network.is_dual:
            return asymmetric_loss(logits, targets, weights, num_positives) * micro_batch.count, {}
        loss = weighted_bce(logits, targets, weights, config.negative_weight, num_positives)
        return loss * micro_batch.count, {
            "scale": self.network.log_scale.exp().item(),
            "bias": self.network.bias.item(),
        }

    def evaluate(self) -> Mapping[str, float]:
        num_videos = min(256, self.config.num_validation_videos)
        logits, targets = evaluate_baseline(self.network, self.source, self.config, num_videos)
        return metrics_by_kind(logits, targets, self.source.validation_labels, self.labels.kinds)


@torch.no_grad()
def evaluate_baseline(
    network: BaselineNetwork, source: TrainingSource, config: FitConfig, num_videos: int
) -> tuple[Tensor, Tensor]:
    """Logits and int8 targets, both [n, V]. The videos are those of our method's validation."""
    frames, targets = features_of_videos(network.frame_features, source.validation_videos(num_videos), config)
    labels, size = source.validation_labels, EVALUATION_BATCH_LABELS
    batches = [list(labels[i : i + size]) for i in range(0, len(labels), size)]
    return torch.cat([network.logits(frames, names).cpu() for names in batches], dim=1), targets


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    num_positives: Tensor | None = None,
    *,
    focus: tuple[float, float] = (1.0, 2.0),
    margin: float = 0.05,
) -> Tensor:
    """DualCoOp's loss (its code's form of Ridnik et al., ICCV 2021), per positive of the batch as in ``weighted_bce``.

    With ``p = sigmoid(logit)``: positives ``-(1 - p)^focus[0] log p``, negatives ``-q^focus[1] log(1 - q)`` with
    ``q = max(p - margin, 0)``. The focusing factors carry no gradient; the arguments of logarithms are at least 1e-6.
    """
    is_positive, is_known = targets == POSITIVE, targets != UNKNOWN
    count = is_positive.sum() if num_positives is None else num_positives
    p = torch.sigmoid(logits.float())
    absent = (1 - p + margin).clamp_max(1)
    with torch.no_grad():
        factor = torch.where(is_positive, (1 - p) ** focus[0], (1 - absent) ** focus[1]) * is_known
    log = torch.where(is_positive, p.clamp_min(1e-6).log(), absent.clamp_min(1e-6).log())
    total: Tensor = -(factor * log * weights).sum() / count.clamp_min(1)
    return total
