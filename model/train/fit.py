"""The paper's training step: encode videos and labels, score them, weighted binary cross-entropy.

``JointTask`` draws new videos in every step and trains the temporal branch too. ``LabelTask`` trains the label encoder
alone, on fixed features of videos.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.seeds import Stream, generator_for
from vidlex.model.train.extensions.extension import Extension, StepFeatures
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.label_sampling import sample_stage_labels, sample_step_labels
from vidlex.model.train.loop.processes import MicroBatch
from vidlex.model.train.losses import POSITIVE, weighted_bce
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.recipe import Stage
from vidlex.model.train.source import StepVideos, TrainingLabels, TrainingSource
from vidlex.model.train.validation import evaluate_network, metrics_by_kind
from vidlex.model.video.encoder import Trunk

NUM_STEP_FEATURES = 1024  # of a step of ``LabelTask``


class JointTask:
    """``states`` [V, N, K, L, d]: of the language model, for the labels of the source."""

    def __init__(
        self,
        stage: Stage,
        network: OpenVocabularyNetwork,
        source: TrainingSource,
        states: Tensor,
        config: FitConfig,
        *,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self.name, self.network, self.source, self.states, self.config = stage.name, network, source, states, config
        self.labels, self.extensions = source.labels, extensions
        self.module = network
        self.videos: StepVideos = source
        self.waited_seconds = 0.0  # for videos
        self.optimizer = network.optimizer(stage, config)

    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        # Micro-batches divide the videos of the step; each has all labels of the step.
        config, network = self.config, self.network
        started = time.monotonic()
        batch = self.videos.draw(step, micro_batch)
        self.waited_seconds += time.monotonic() - started
        alpha = float(torch.rand((), generator=batch.generator)) * config.interpolation_lambda
        if config.interpolation_lambda == 0:
            alpha = 1.0
        index, weights = sample_step_labels(self.labels, batch.all_targets, config, batch.generator)
        names = [self.labels.names[i] for i in index.tolist()]
        states = _changed(self.extensions, self.states[index].to(network.device, torch.float32), step)

        frames = batch.frames.to(config.device)
        trunk = frames if isinstance(frames, Trunk) else network.video.compute_trunk(frames)
        videos = network.video_features(trunk, alpha)
        labels = network.label.forward_from_states(names, states)
        loss = weighted_bce(
            network.logits(videos, labels),
            batch.targets[:, index].to(config.device),
            weights.to(config.device),
            config.negative_weight,
            (batch.all_targets[:, index] == POSITIVE).sum(),
        )
        scale = network.log_scale.exp()
        logged = {"scale": scale.item(), "bias": network.bias.item()}
        if not self.extensions:
            return loss * micro_batch.count, logged
        frame_means = F.normalize(trunk.frame_features.float().mean(dim=1), dim=-1)
        features = StepFeatures(
            videos, labels, index, frame_means, scale.detach(), len(batch.all_targets), len(index)
        )  # fmt: skip
        return _extended(self.extensions, loss, logged, features, micro_batch)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        num_videos = min(256, self.config.num_validation_videos)
        logits, targets = evaluate_network(
            self.network, self.source, self.states, self.config, num_videos=num_videos, alpha=0.5
        )
        return metrics_by_kind(logits, targets, self.source.validation_labels, self.labels.kinds)


class Validation(NamedTuple):
    features: Tensor  # [n, D], of a branch that no longer changes
    targets: Tensor  # [n, v] int8
    names: tuple[str, ...]  # [v]
    states: Tensor  # [v, N, K, L, d]


class LabelTask:
    """``cached``: features [n, D] and targets [n, V] int8 of training videos. Targets and ``states`` [V, N, K, L, d]
    have the order of ``labels``; without states, a step runs its labels through the language model.
    """

    def __init__(
        self,
        stage: Stage,
        network: OpenVocabularyNetwork,
        *,
        cached: tuple[Tensor, Tensor],
        labels: TrainingLabels,
        states: Tensor | None,
        config: FitConfig,
        validation: Validation | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self.name, self.stage, self.network, self.states, self.config = stage.name, stage, network, states, config
        self.features, self.targets = cached
        self.labels, self.validation, self.extensions = labels, validation, extensions
        self.module = network
        self.optimizer = network.optimizer(stage, config)

    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        # Micro-batches divide the labels of the step; each has all videos of the step.
        config, network = self.config, self.network
        generator = generator_for(config.seed, Stream.LABEL_STEP, step)
        index = sample_stage_labels(self.labels, self.stage.num_labels, generator)
        drawn = torch.randint(0, len(self.features), (NUM_STEP_FEATURES,), generator=generator)
        videos, targets = self.features[drawn], self.targets[drawn]
        num_positives, num_labels = (targets[:, index] == POSITIVE).sum(), len(index)
        rows = micro_batch.rows(num_labels)
        states = None
        if self.states is not None:
            states = _changed(self.extensions, self.states[index].to(network.device, torch.float32), step)[rows]
        index = index[rows]
        names = [self.labels.names[i] for i in index.tolist()]

        labels = network.label(names) if states is None else network.label.forward_from_states(names, states)
        weights = self.labels.weights[index].to(config.device)
        loss = weighted_bce(
            network.logits(videos, labels),
            targets[:, index].to(config.device),
            weights,
            config.negative_weight,
            num_positives,
        )
        features = StepFeatures(
            videos, labels, index, None, network.log_scale.exp().detach(), len(drawn), num_labels
        )  # fmt: skip
        return _extended(self.extensions, loss, {}, features, micro_batch)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        # Without states, evaluation would run the LLM on every label.
        if self.validation is None or self.states is None:
            return {}
        features, targets, names, states = self.validation
        labels = self.network.label.forward_from_states(list(names), states.to(self.config.device))
        return metrics_by_kind(self.network.logits(features, labels).cpu(), targets, names, self.labels.kinds)


def _changed(extensions: Sequence[Extension], states: Tensor, step: int) -> Tensor:
    for extension in extensions:
        states = extension.change_states(states, step)
    return states


def _extended(
    extensions: Sequence[Extension],
    loss: Tensor,
    logged: dict[str, float],
    features: StepFeatures,
    micro_batch: MicroBatch,
) -> tuple[Tensor, dict[str, float]]:
    loss = loss * micro_batch.count
    for extension in extensions:
        for name, (weight, term) in extension.losses(features).items():
            scaled = term * micro_batch.count
            loss = loss + weight * scaled
            logged = {**logged, name: scaled.item()}
    return loss, logged
