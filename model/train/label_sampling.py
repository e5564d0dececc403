"""Which labels a training step uses, and their weights in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.losses import POSITIVE, UNKNOWN
from vidlex.model.train.source import TrainingLabels


def sample_labels(
    targets: Tensor,
    num_labels: int,
    always: Tensor,
    generator: torch.Generator,
    *,
    all_positives: bool = True,
    when_positive: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels of one step: every positive of the batch, those of ``always``, and random others up to ``num_labels``.

    ``targets`` [B, V] int8, ``always`` [V] bool. Returns sorted label indices [n] and their weights [n]: 1 for labels
    that are certain to be included, otherwise the inverse of the probability of being drawn. A label that is unknown in
    every video of the batch has no terms in the loss and is not drawn.

    Without ``all_positives`` the positives outside ``always`` are drawn too, at most two thirds of the free places and
    in addition to them. Those of ``when_positive`` [V] bool are always included when positive.

    ``groups`` [V] (-1 for labels that are not composed) is for vocabularies that consist mostly of composed labels,
    such as a noun with its motion. Half of the random labels are then not composed; the others share their group with a
    positive of the batch, so that only the other part distinguishes them. Other composed labels are never drawn: as
    negatives they would outnumber the few positives, and training would first learn a low score of all of them.
    """
    positive = (targets == POSITIVE).any(dim=0)
    known = (targets != UNKNOWN).any(dim=0)
    always = always & known
    if all_positives:
        always = always | positive
    elif when_positive is not None:
        always = always | (positive & when_positive)
    certain = always.nonzero()[:, 0]
    num_free = max(0, num_labels - len(certain))
    parts = [(certain, torch.ones(len(certain)))]
    negative = known & ~(positive | always)
    pools = [(positive & ~always, num_free * 2 // 3)]
    if groups is None:
        pools.append((negative, num_free))
    else:
        is_composed = groups >= 0
        shares_group = is_composed & torch.isin(groups, groups[positive & is_composed])
        pools += [(negative & shares_group, num_free // 2), (negative & ~is_composed, num_free // 2)]
    for pool, max_drawn in pools:
        members = pool.nonzero()[:, 0]
        num_drawn = min(len(members), max_drawn)
        drawn = members[torch.randperm(len(members), generator=generator)[:num_drawn]]
        parts.append((drawn, torch.full((num_drawn,), len(members) / max(1, num_drawn))))
    index, order = torch.cat([drawn for drawn, _ in parts]).sort()
    return index, torch.cat([weights for _, weights in parts])[order]


def sample_step_labels(
    labels: TrainingLabels, targets: Tensor, config: FitConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As ``sample_labels``, with the weights of the labels in the loss."""
    index, weights = sample_labels(
        targets, config.num_step_labels, labels.is_always_drawn, generator, all_positives=config.all_positives,
        when_positive=labels.is_drawn_when_positive, groups=labels.groups,
    )  # fmt: skip
    return index, weights * labels.weights[index]


def sample_stage_labels(labels: TrainingLabels, num_labels: int, generator: torch.Generator) -> Tensor:
    """Sorted indices of labels for a step on fixed features, drawn at random; all with ``num_labels`` 0.

    If the vocabulary has groups (``sample_labels``), its composed labels outnumber the others: half are drawn of each.
    """
    num_all = len(labels.names)
    num_labels = num_labels or num_all
    index = torch.randperm(num_all, generator=generator)
    if labels.groups is not None and num_labels < num_all:
        is_composed = labels.is_composed[index]
        index = torch.cat((index[is_composed][: num_labels // 2], index[~is_composed][: num_labels - num_labels // 2]))
    return index[:num_labels].sort().values
