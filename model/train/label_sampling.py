"""Which labels a training step uses, and their weights in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlex.model.emoji.world import World
from vidlex.model.train.fit_config import FitConfig

# In every step: these kinds have few labels, and those are hard or frequent.
ALWAYS_SAMPLED_KINDS = ("action", "scene")
# In every step in which they are positive: these kinds have many labels, each of them rare.
SAMPLED_WHEN_POSITIVE_KINDS = ("pair",)


def sample_labels(
    targets: Tensor,
    num_labels: int,
    always: Tensor,
    generator: torch.Generator,
    *,
    all_positives: bool = True,
    when_positive: Tensor | None = None,
    pair_nouns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels of one step: every positive of the batch, those of ``always``, and random others up to ``num_labels``.

    ``targets`` [B, V] bool, ``always`` [V] bool. Returns sorted label indices [n] and their weights [n]: 1 for labels
    that are certain to be included, otherwise the inverse of the probability of being drawn.

    Without ``all_positives`` the positives outside ``always`` are drawn too, at most two thirds of the free places and
    in addition to them. Those of ``when_positive`` [V] bool are always included when positive.

    ``pair_nouns`` [V] (-1 for labels that are no pairs) is for vocabularies that consist mostly of pairs. Half of the
    random labels are then no pairs; the others are pairs of a noun that the batch shows in another pair, so that only
    the motion distinguishes them. Other pairs are never drawn: as negatives they would outnumber the few positives, and
    training would first learn a low score of every pair.
    """
    positive = targets.any(dim=0)
    if all_positives:
        always = always | positive
    elif when_positive is not None:
        always = always | (positive & when_positive)
    certain = always.nonzero()[:, 0]
    num_free = max(0, num_labels - len(certain))
    groups = [(certain, torch.ones(len(certain)))]
    negative = ~(positive | always)
    pools = [(positive & ~always, num_free * 2 // 3)]
    if pair_nouns is None:
        pools.append((negative, num_free))
    else:
        is_pair = pair_nouns >= 0
        shares_noun = is_pair & torch.isin(pair_nouns, pair_nouns[positive & is_pair])
        pools += [(negative & shares_noun, num_free // 2), (negative & ~is_pair, num_free // 2)]
    for pool, max_drawn in pools:
        members = pool.nonzero()[:, 0]
        num_drawn = min(len(members), max_drawn)
        drawn = members[torch.randperm(len(members), generator=generator)[:num_drawn]]
        groups.append((drawn, torch.full((num_drawn,), len(members) / max(1, num_drawn))))
    index, order = torch.cat([drawn for drawn, _ in groups]).sort()
    return index, torch.cat([weights for _, weights in groups])[order]


@dataclass(frozen=True, eq=False)
class LabelSampler:
    # See ``sample_labels``.
    weights: Tensor  # [V], by kind
    always: Tensor
    when_positive: Tensor
    pair_nouns: Tensor | None

    @classmethod
    def for_world(cls, world: World, config: FitConfig) -> LabelSampler:
        kinds = world.kinds()
        has_more_pairs = config.num_more_pairs > 0
        return cls(
            kind_weights(world.labels, kinds, config),
            torch.tensor([kinds[name] in ALWAYS_SAMPLED_KINDS for name in world.labels]),
            torch.tensor([has_more_pairs and kinds[name] in SAMPLED_WHEN_POSITIVE_KINDS for name in world.labels]),
            world.pair_nouns() if has_more_pairs else None,
        )

    def sample(self, targets: Tensor, config: FitConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index, weights = sample_labels(
            targets, config.num_step_labels, self.always, generator, all_positives=config.all_positives,
            when_positive=self.when_positive, pair_nouns=self.pair_nouns,
        )  # fmt: skip
        return index, weights * self.weights[index]


def kind_weights(labels: Sequence[str], kinds: dict[str, str], config: FitConfig) -> Tensor:
    weight_of = {"action": config.action_weight, "pair": config.pair_weight}
    return torch.tensor([weight_of.get(kinds[name], 1.0) for name in labels])
