"""The tasks of the paper's fine-tuning, and evaluation on validation videos.

1. *joint*: the temporal branch and the prompting transformer, on LLM states cached for the initial prefixes;
2. *prefix*: the prefixes, end to end through the frozen LLM with few labels per step, on cached video features;
3. *label*: the prompting transformer, scale and bias, on LLM states for the final prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.emoji.world import World
from vidlex.model.eval.metrics import summarise
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.train.clip_regulariser import ClipRegulariser
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.label_sampling import LabelSampler, kind_weights
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.optim import ParameterGroup, make_optimizer
from vidlex.model.train.loop.processes import MicroBatch, process_group
from vidlex.model.train.losses import label_distillation_loss, video_distillation_loss, weighted_bce
from vidlex.model.train.network import OpenVocabularyNetwork, add_state_noise
from vidlex.model.train.step_videos import RenderedVideos, VideoSource
from vidlex.model.video.encoder import Trunk

VALIDATION_SEED = 300_000  # of the validation videos of every method
ALPHAS = (0.25, 0.5, 0.75, 1.0)  # candidates for the interpolation of the branch's weights


class JointTask:
    name = "joint"

    def __init__(
        self,
        network: OpenVocabularyNetwork,
        worlds: Mapping[str, World],
        states: Tensor,
        config: FitConfig,
        regulariser: ClipRegulariser | None = None,
    ) -> None:
        self.network, self.worlds, self.config, self.regulariser = network, worlds, config, regulariser
        self.states = states  # [V, N, K, L, d]
        world = worlds["train"]
        self.labels = world.labels
        self.sampler = LabelSampler.for_world(world, config)
        kinds = world.kinds()
        self.is_name = torch.tensor([kinds[name] != "pair" for name in self.labels])
        self.module = network
        self.videos: VideoSource = RenderedVideos(world, config, network.video.config.num_frames)
        network.label.prefixes.requires_grad_(False)
        new, copied = network.video.new_and_copied_parameters()
        self.optimizer = make_optimizer(
            [
                ParameterGroup(new, config.new_learning_rate),
                ParameterGroup(copied, config.copied_learning_rate),
                # CLIP's own tower is frozen, except in an ablation.
                ParameterGroup([*network.video.visual.parameters()], config.copied_learning_rate / 4),
                ParameterGroup([*network.label.prompting.parameters()], config.label_learning_rate),
                ParameterGroup([network.log_scale, network.bias], 5 * config.label_learning_rate),
            ],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )

    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        # Micro-batches divide the videos of the step; each has all labels of the step.
        config = self.config
        batch = self.videos.draw(step, micro_batch)
        alpha = float(torch.rand((), generator=batch.generator)) * config.interpolation_lambda
        if config.interpolation_lambda == 0:
            alpha = 1.0
        index, weights = self.sampler.sample(batch.all_targets, config, batch.generator)
        names = [self.labels[i] for i in index.tolist()]
        frames = batch.frames.to(config.device)
        trunk = frames if isinstance(frames, Trunk) else self.network.video.compute_trunk(frames)
        videos = self.network.video_features(trunk, alpha)
        labels = self.network.label.forward_from_states(
            names, add_state_noise(self.states[index], self.network, config, step)
        )
        logits = self.network.logits(videos, labels)
        loss = weighted_bce(
            logits,
            batch.targets[:, index].to(config.device),
            weights.to(config.device),
            config.negative_weight,
            batch.all_targets[:, index].sum(),
        )
        scale = self.network.log_scale.exp()
        logged = {"scale": scale.item(), "bias": self.network.bias.item()}
        loss = loss * micro_batch.count
        if self.regulariser is not None:
            texts, label_weights = self.regulariser.texts, self.regulariser.weights
            num_videos, fixed_scale = len(batch.all_targets), scale.detach()
            frame_means = F.normalize(trunk.frame_features.float().mean(dim=1), dim=-1)  # [b, D]
            video_loss = video_distillation_loss(videos - frame_means, texts[self.is_name], fixed_scale, num_videos)
            label_loss = label_distillation_loss(
                labels - texts[index], frame_means, label_weights[index], fixed_scale, num_videos * len(index)
            )
            video_loss, label_loss = video_loss * micro_batch.count, label_loss * micro_batch.count
            loss = loss + config.video_hold * video_loss + config.label_hold * label_loss
            logged |= {"video_hold": video_loss.item(), "label_hold": label_loss.item()}
        return loss, logged

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        logits, targets = evaluate_network(
            self.network,
            self.worlds["val"],
            self.states[: len(self.worlds["val"].labels)],
            self.config,
            num_videos=min(256, self.config.num_validation_videos),
            alpha=0.5,
        )
        return metrics_by_kind(logits, targets, self.worlds["val"])


class LabelTask:
    """The label encoder alone, on cached video features: with ``states``, or through the LLM if they are None.

    ``cached`` and ``validation``: results of ``compute_video_features``. ``labels``: a subset of the world's, in the
    order of targets, states and ``regulariser``.
    """

    def __init__(
        self,
        name: str,
        network: OpenVocabularyNetwork,
        *,
        cached: tuple[Tensor, Tensor],
        world: World,
        states: Tensor | None,
        config: FitConfig,
        validation: tuple[Tensor, Tensor] | None = None,
        labels: Sequence[str] | None = None,
        regulariser: ClipRegulariser | None = None,
    ) -> None:
        self.world, self.validation, self.regulariser = world, validation, regulariser
        self.name, self.network, self.config, self.states = name, network, config, states
        self.features, self.targets = cached
        self.labels = world.labels if labels is None else tuple(labels)
        kinds = world.kinds()
        self.weights = kind_weights(self.labels, kinds, config)
        self.is_pair = torch.tensor([kinds[name] == "pair" for name in self.labels])
        self.module = network
        end_to_end = states is None
        network.video.requires_grad_(False)
        network.label.prefixes.requires_grad_(end_to_end)
        rate = config.label_learning_rate * 0.4
        groups = [
            ParameterGroup([*network.label.prompting.parameters()], rate),
            ParameterGroup([network.log_scale, network.bias], rate),
        ]
        if end_to_end:
            groups.append(ParameterGroup([network.label.prefixes], config.prefix_learning_rate))
        self.optimizer = make_optimizer(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98))

    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        # Micro-batches divide the labels of the step; each has all videos of the step.
        config = self.config
        generator = generator_for(config.seed, Stream.LABEL_STEP, step)
        num_labels = config.num_prefix_labels if self.states is None else config.num_stage_labels or len(self.labels)
        index = torch.randperm(len(self.labels), generator=generator)
        if config.num_more_pairs and num_labels < len(index):  # pairs outnumber the other labels: draw half of each
            is_pair = self.is_pair[index]
            index = torch.cat((index[is_pair][: num_labels // 2], index[~is_pair][: num_labels - num_labels // 2]))
        index = index[:num_labels].sort().values
        drawn = torch.randint(0, len(self.features), (1024,), generator=generator)
        features, targets = self.features[drawn], self.targets[drawn]
        num_positives, num_scores = targets[:, index].sum(), len(drawn) * len(index)
        rows = micro_batch.rows(len(index))
        states = None if self.states is None else add_state_noise(self.states[index], self.network, config, step)[rows]
        index = index[rows]
        names = [self.labels[i] for i in index.tolist()]
        labels = self.network.label(names) if states is None else self.network.label.forward_from_states(names, states)
        logits = self.network.logits(features, labels)
        weights = self.weights[index].to(config.device)
        loss = weighted_bce(logits, targets[:, index].to(config.device), weights, config.negative_weight, num_positives)
        loss = loss * micro_batch.count
        if self.regulariser is None:
            return loss, {}
        change, scale = labels - self.regulariser.texts[index], self.network.log_scale.exp().detach()
        label_loss = label_distillation_loss(change, features, self.regulariser.weights[index], scale, num_scores)
        label_loss = label_loss * micro_batch.count
        return loss + config.label_hold * label_loss, {"label_hold": label_loss.item()}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        # Without states, evaluation would run the LLM on every label.
        if self.validation is None or self.states is None:
            return {}
        videos, targets = self.validation
        num = targets.shape[1]  # the validation world has the first labels only
        labels = self.network.label.forward_from_states(self.labels[:num], self.states[:num].to(self.config.device))
        return metrics_by_kind(self.network.logits(videos, labels).cpu(), targets, self.world)


@torch.no_grad()
def compute_video_features(
    network: OpenVocabularyNetwork, world: World, num_videos: int, config: FitConfig, *, seed: int, alpha: float | None
) -> tuple[Tensor, Tensor]:
    def features(frames: Tensor) -> Tensor:
        return network.video_features(frames, alpha).float()

    return features_of_world(features, world, num_videos, network.video.config.num_frames, config, seed=seed)


@torch.no_grad()
def features_of_world(
    features_of: Callable[[Tensor], Tensor],
    world: World,
    num_videos: int,
    num_frames: int,
    config: FitConfig,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    # [n, ...], [n, V]
    features, targets = [], []
    for chunk in range((num_videos + 63) // 64):
        sample = world.videos(min(64, num_videos - 64 * chunk), num_frames, world.generator(seed + chunk))
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.bf16)):
            features.append(features_of(sample.frames.to(config.device)))
        targets.append(sample.targets)
    return torch.cat(features), torch.cat(targets)


@torch.no_grad()
def evaluate_network(
    network: OpenVocabularyNetwork,
    world: World,
    states: Tensor,
    config: FitConfig,
    *,
    num_videos: int,
    alpha: float | None,
) -> tuple[Tensor, Tensor]:
    # [n, V], [n, V]
    videos, targets = compute_video_features(network, world, num_videos, config, seed=VALIDATION_SEED, alpha=alpha)
    labels = network.label.forward_from_states(list(world.labels), states.to(config.device))
    return network.logits(videos, labels).cpu(), targets


def metrics_by_kind(logits: Tensor, targets: Tensor, world: World) -> dict[str, float]:
    kinds = world.kinds()
    names = world.labels[: targets.shape[1]]  # the columns
    metrics = {"micro_aupr": summarise(logits.numpy(), targets.numpy())["micro_aupr"]}
    for kind in dict.fromkeys(kinds.values()):
        columns = torch.tensor([kinds[name] == kind for name in names])
        metrics[f"aupr_{kind}"] = summarise(logits[:, columns].numpy(), targets[:, columns].numpy())["micro_aupr"]
    return metrics


def choose_alpha(network: OpenVocabularyNetwork, evaluate: Callable[[float], tuple[Tensor, Tensor]]) -> float:
    """Fold the alpha with the best micro AUPR into the network.

    ``evaluate`` returns logits and targets [n, V] of validation videos at an alpha.
    """
    scores = {}
    for alpha in ALPHAS:
        logits, targets = evaluate(alpha)
        scores[alpha] = summarise(logits.cpu().numpy(), targets.numpy())["micro_aupr"]
        console.print(f"alpha {alpha}: validation micro AUPR {scores[alpha]:.4f}", highlight=False)
    best = max(scores, key=lambda alpha: scores[alpha])
    best = float(process_group(network.bias.device.type).broadcast(best))
    network.video.fold(best)
    return best
