"""Fine-tuning with the paper's method, in stages that fit two CPU cores (on a GPU raise the step counts).

1. *joint*: the temporal branch and the prompting transformer learn together, on LLM states cached under the
   starting prefixes;
2. *prefix*: the prefixes learn end to end through the frozen LLM, few labels a step, against cached features of
   training videos;
3. *label*: the prompting transformer, scale and bias settle on the states of the final prefixes.

Then, on validation videos: the interpolation of the branch's weights is chosen and folded in, and the
calibration is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.emoji.world import World
from vidlex.model.eval.metrics import summarise
from vidlex.model.train.clip_regulariser import Held
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import console
from vidlex.model.train.losses import label_hold, video_hold, weighted_bce
from vidlex.model.train.optim import Group, make_optimizer
from vidlex.model.train.processes import WHOLE, Part, processes_of
from vidlex.model.train.step_videos import StepVideos, VideoSource
from vidlex.model.train.task import LabelChoice, OpenVocabularyNetwork, kind_weights, noisy
from vidlex.model.video.encoder import Trunk

VALIDATION_SEED = 300_000
"""Of the validation videos, the same for every method."""


class JointTask:
    """Stage 1: videos and labels together."""

    name = "joint"

    def __init__(
        self,
        network: OpenVocabularyNetwork,
        worlds: Mapping[str, World],
        states: Tensor,
        config: FitConfig,
        held: Held | None = None,
    ) -> None:
        self.network, self.worlds, self.config, self.held = network, worlds, config, held
        self.states = states  # [V, N, K, L, d]
        world = worlds["train"]
        self.labels = world.labels
        self.choice = LabelChoice.of(world, config)
        kinds = world.kinds()
        self.is_name = torch.tensor([kinds[name] != "pair" for name in self.labels])
        self.module = network
        self.videos: VideoSource = StepVideos(world, config, network.video.config.num_frames)
        network.label.prefixes.requires_grad_(False)
        new, copied = network.video.new_and_copied()
        self.optimizer = make_optimizer(
            [
                Group(new, config.new_learning_rate),
                Group(copied, config.copied_learning_rate),
                # CLIP's own tower: frozen, so not here, but in an ablation
                Group([*network.video.visual.parameters()], config.copied_learning_rate / 4),
                Group([*network.label.prompting.parameters()], config.label_learning_rate),
                Group([network.log_scale, network.bias], 5 * config.label_learning_rate),
            ],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return self.training_part(step, WHOLE)

    def training_part(self, step: int, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        """A part is some of the step's videos, against all labels of the step."""
        config = self.config
        batch = self.videos.draw(step, part)
        alpha = float(torch.rand((), generator=batch.generator)) * config.interpolation_lambda
        if config.interpolation_lambda == 0:
            alpha = 1.0
        index, weights = self.choice.draw(batch.all_targets, config, batch.generator)
        names = [self.labels[i] for i in index.tolist()]
        frames = batch.frames.to(config.device)
        trunk = frames if isinstance(frames, Trunk) else self.network.video.trunk(frames)
        videos = self.network.video_features(trunk, alpha)
        labels = self.network.label.forward_from_states(names, noisy(self.states[index], self.network, config, step))
        logits = self.network.logits(videos, labels)
        loss = weighted_bce(
            logits,
            batch.targets[:, index].to(config.device),
            weights.to(config.device),
            config.negative_weight,
            batch.all_targets[:, index].sum(),
        )
        scale = self.network.log_scale.exp()
        figures = {"scale": scale.item(), "bias": self.network.bias.item()}
        loss = loss * part.count
        if self.held is not None:
            held, num_videos, own = self.held, len(batch.all_targets), scale.detach()
            start = F.normalize(trunk.frame_features.float().mean(dim=1), dim=-1)  # [b, D]
            on_videos = video_hold(videos - start, held.texts[self.is_name], own, num_videos) * part.count
            change = labels - held.texts[index]
            on_labels = label_hold(change, start, held.known[index], own, num_videos * len(index)) * part.count
            loss = loss + config.video_hold * on_videos + config.label_hold * on_labels
            figures |= {"video_hold": on_videos.item(), "label_hold": on_labels.item()}
        return loss, figures

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Micro AUPR over all labels, and by kind, on validation videos (the step's mean alpha)."""
        logits, targets = evaluate_network(
            self.network,
            self.worlds["val"],
            self.states[: len(self.worlds["val"].labels)],
            self.config,
            num_videos=min(256, self.config.num_validation_videos),
            alpha=0.5,
        )
        return figures_by_kind(logits, targets, self.worlds["val"])


class LabelTask:
    """Stages 2 and 3: the label side alone against cached video features; ``states`` None runs the LLM end to end.

    ``cached`` and ``validation`` are features and targets as ``video_features`` returns them. ``labels``: some of the
    world's, in the order of the targets and states, and of ``held``.
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
        held: Held | None = None,
    ) -> None:
        self.world, self.validation, self.held = world, validation, held
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
        groups = [Group([*network.label.prompting.parameters()], rate), Group([network.log_scale, network.bias], rate)]
        if end_to_end:
            groups.append(Group([network.label.prefixes], config.prefix_learning_rate))
        self.optimizer = make_optimizer(groups, weight_decay=config.weight_decay, betas=(0.9, 0.98))

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return self.training_part(step, WHOLE)

    def training_part(self, step: int, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        """A part is some of the step's labels, against all videos of the step."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 10_000_019 + 90_000_000 + step)
        # through the LLM: few labels
        most = config.num_prefix_labels if self.states is None else config.num_stage_labels or len(self.labels)
        index = torch.randperm(len(self.labels), generator=generator)
        if config.num_more_pairs and most < len(index):  # half of them pairs, though most labels are
            is_pair = self.is_pair[index]
            index = torch.cat((index[is_pair][: most // 2], index[~is_pair][: most - most // 2]))
        index = index[:most].sort().values
        pick = torch.randint(0, len(self.features), (1024,), generator=generator)
        num_positives, num_read = self.targets[pick][:, index].sum(), len(index)
        own = part.rows(len(index))
        states = None if self.states is None else noisy(self.states[index], self.network, config, step)[own]
        index = index[own]
        names = [self.labels[i] for i in index.tolist()]
        labels = self.network.label(names) if states is None else self.network.label.forward_from_states(names, states)
        logits = self.network.logits(self.features[pick], labels)
        targets = self.targets[pick][:, index].to(config.device)
        weights = self.weights[index].to(config.device)
        loss = weighted_bce(logits, targets, weights, config.negative_weight, num_positives) * part.count
        if self.held is None:
            return loss, {}
        change, scale = labels - self.held.texts[index], self.network.log_scale.exp().detach()
        on_labels = label_hold(change, self.features[pick], self.held.known[index], scale, len(pick) * num_read)
        on_labels = on_labels * part.count
        return loss + config.label_hold * on_labels, {"label_hold": on_labels.item()}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Micro AUPR of all labels, and by kind, on the validation features; nothing without them, or for a stage that
        would have to run the LLM on every label."""
        if self.validation is None or self.states is None:
            return {}
        videos, targets = self.validation
        num = targets.shape[1]  # the world of validation may have fewer labels: the first ones
        labels = self.network.label.forward_from_states(self.labels[:num], self.states[:num].to(self.config.device))
        return figures_by_kind(self.network.logits(videos, labels).cpu(), targets, self.world)


@torch.no_grad()
def video_features(
    network: OpenVocabularyNetwork, world: World, num_videos: int, config: FitConfig, *, seed: int, alpha: float | None
) -> tuple[Tensor, Tensor]:
    """Unit features [n, D] and targets [n, V] of ``num_videos`` videos of a world, half of them with two sprites."""
    features, targets = [], []
    num_frames = network.video.config.num_frames
    for chunk in range((num_videos + 63) // 64):
        sample = world.videos(min(64, num_videos - 64 * chunk), num_frames, world.generator(seed + chunk))
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.bf16)):
            features.append(network.video_features(sample.frames.to(config.device), alpha).float())
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
    """Logits and targets [n, V] of validation videos against every label of the world."""
    videos, targets = video_features(network, world, num_videos, config, seed=VALIDATION_SEED, alpha=alpha)
    labels = network.label.forward_from_states(list(world.labels), states.to(config.device))
    return network.logits(videos, labels).cpu(), targets


def figures_by_kind(logits: Tensor, targets: Tensor, world: World) -> dict[str, float]:
    """Micro AUPR of all labels and of each kind of label. The labels judged are the world's, or its first ones."""
    kinds = world.kinds()
    names = world.labels[: targets.shape[1]]
    figures = {"micro_aupr": summarise(logits.numpy(), targets.numpy())["micro_aupr"]}
    for kind in dict.fromkeys(kinds.values()):
        columns = torch.tensor([kinds[name] == kind for name in names])
        figures[f"aupr_{kind}"] = summarise(logits[:, columns].numpy(), targets[:, columns].numpy())["micro_aupr"]
    return figures


def choose_alpha(network: OpenVocabularyNetwork, world: World, states: Tensor, config: FitConfig) -> float:
    """The interpolation with the best micro AUPR on validation videos; the network is folded at it."""
    found = {}
    for alpha in (0.25, 0.5, 0.75, 1.0):
        num_videos = min(384, config.num_validation_videos)
        logits, targets = evaluate_network(network, world, states, config, num_videos=num_videos, alpha=alpha)
        found[alpha] = summarise(logits.numpy(), targets.numpy())["micro_aupr"]
        console.print(f"alpha {alpha}: validation micro AUPR {found[alpha]:.4f}", highlight=False)
    best = float(processes_of(torch.device(config.device).type).tell(max(found, key=lambda a: found[a])))
    network.video.fold(best)
    return best
