"""The network as it trains: both encoders, the learned scale and bias, and the label sampling of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.emoji.world import World
from vidlex.model.scoring import similarity_to_logit
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.video.encoder import Trunk, VideoEncoder

ALWAYS = ("action", "scene")
"""Kinds of labels that every step reads: few, and hard or frequent."""

WHEN_TRUE = ("pair",)
"""Kinds of labels that a step reads whenever they are true in it: many, and each of them rare."""


class OpenVocabularyNetwork(nn.Module):
    """Video encoder, label encoder, ``logit_scale`` (stored as its logarithm) and ``logit_bias``."""

    def __init__(self, video: VideoEncoder, label: LabelEncoder, *, scale: float = 15.0, bias: float = -7.0) -> None:
        super().__init__()
        self.video, self.label = video, label
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def trust_names(self, trust: float) -> None:
        """From now on score labels that CLIP knows by frozen CLIP too: ``LabelEncoderConfig.name_trust``. Features of
        both sides are then twice as long, so do it when training is over."""
        self.label.config = replace(self.label.config, name_trust=trust)
        self.video.with_frame_mean = trust > 0

    def logits(self, video_features: Tensor, label_features: Tensor) -> Tensor:
        """[B, D] unit video features and [V, D] label features -> [B, V] logits, in float32."""
        with torch.autocast(video_features.device.type, enabled=False):
            similarity = video_features.float() @ label_features.float().T
            return similarity_to_logit(similarity, self.log_scale.exp(), self.bias)

    def video_features(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """[B, T, 3, H, W] uint8, or what the frozen tower made of it, -> [B, D] unit features, with gradient to the
        branch."""
        return F.normalize(self.video(frames, alpha), dim=-1)


def noisy(states: Tensor, network: OpenVocabularyNetwork, config: FitConfig, step: int) -> Tensor:
    """States [V, N, K, L, d] of a step's labels, on the network's device, with ``state_noise`` (not in the paper).

    Training with noise is a penalty on how steeply the output follows the input (Bishop, Neural Computation 1995).
    The same for every part of a step.
    """
    states = states.to(network.bias.device, torch.float32)
    if not config.state_noise:
        return states
    generator = torch.Generator(states.device).manual_seed(config.seed * 10_000_019 + 20_000_000 + step)
    noise = torch.randn(states.shape, generator=generator, device=states.device)
    return states + config.state_noise * network.label.state_std * noise


def sample_labels(
    targets: Tensor,
    num_labels: int,
    always: Tensor,
    generator: torch.Generator,
    *,
    all_positives: bool = True,
    when_true: Tensor | None = None,
    thing: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels of one step: every positive of the batch, those of ``always``, and random others up to ``num_labels``.

    ``targets`` [B, V] bool, ``always`` [V] bool. Returns label indices [n], sorted, and their weights [n]: a sampled
    label stands for all that were left out, so its weight is the inverse of its chance to be drawn. Without
    ``all_positives`` the positives outside ``always`` are sampled too, up to two thirds of what is left of the step
    and beside it (such a step reads up to two thirds more than ``num_labels``), except those of ``when_true`` [V] bool:
    they are read whenever they are positive.

    ``thing`` [V] is for vocabularies of which most labels are pairs: the thing that a pair's label names, -1 for other
    labels. Half of the random others are then no pairs, and the pairs among them name a thing that the batch shows in
    another pair: the same thing doing something else, which is what a label of both has to tell apart. Pairs of things
    that the batch does not show are left out for good: each pair is so rare that, all counted, what a pair's label
    learned first would be to stay silent.
    """
    positive = targets.any(dim=0)
    if all_positives:
        always = always | positive
    elif when_true is not None:
        always = always | (positive & when_true)
    kept = always.nonzero()[:, 0]
    left = max(0, num_labels - len(kept))
    groups = [(kept, torch.ones(len(kept)))]
    negative = ~(positive | always)
    pools = [(positive & ~always, left * 2 // 3)]
    if thing is None:
        pools.append((negative, left))
    else:
        is_pair = thing >= 0
        near = is_pair & torch.isin(thing, thing[positive & is_pair])
        pools += [(negative & near, left // 2), (negative & ~is_pair, left // 2)]
    for pool, most in pools:
        members = pool.nonzero()[:, 0]
        num_drawn = min(len(members), most)
        drawn = members[torch.randperm(len(members), generator=generator)[:num_drawn]]
        groups.append((drawn, torch.full((num_drawn,), len(members) / max(1, num_drawn))))
    index, order = torch.cat([drawn for drawn, _ in groups]).sort()
    return index, torch.cat([weights for _, weights in groups])[order]


@dataclass(frozen=True, eq=False)
class LabelChoice:
    """How the labels of a step are chosen out of a training vocabulary, and what they weigh."""

    weights: Tensor
    """[V]: by kind."""
    always: Tensor
    """[V] bool: read in every step."""
    when_true: Tensor
    """[V] bool: read whenever true."""
    thing: Tensor | None
    """[V], see ``sample_labels``; None where pairs are few."""

    @classmethod
    def of(cls, world: World, config: FitConfig) -> LabelChoice:
        kinds = world.kinds()
        has_more = config.num_more_pairs > 0
        return cls(
            kind_weights(world.labels, kinds, config),
            torch.tensor([kinds[name] in ALWAYS for name in world.labels]),
            torch.tensor([has_more and kinds[name] in WHEN_TRUE for name in world.labels]),
            world.thing_of_pairs() if has_more else None,
        )

    def draw(self, targets: Tensor, config: FitConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices and weights [n] of a step whose videos show ``targets`` [B, V]."""
        index, weights = sample_labels(
            targets, config.num_step_labels, self.always, generator, all_positives=config.all_positives,
            when_true=self.when_true, thing=self.thing,
        )  # fmt: skip
        return index, weights * self.weights[index]


def kind_weights(labels: Sequence[str], kinds: dict[str, str], config: FitConfig) -> Tensor:
    """[V]: a weight for each label by its kind, 1 where ``config`` has none for it."""
    weight_of = {"action": config.action_weight, "pair": config.pair_weight}
    return torch.tensor([weight_of.get(kinds[name], 1.0) for name in labels])
