"""A penalty on forgetting what frozen CLIP knows of the labels (not in the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.text.clip_text import ClipText

FULL_WEIGHT_LIFT = 2.0  # in standard deviations of a label's scores: the lift of weight 1
MIN_VIDEOS = 2  # a label with fewer training videos gets the mean weight of its kind


@dataclass(frozen=True, eq=False)
class ClipRegulariser:
    texts: Tensor  # [V, D], CLIP's unit features of the bare names
    # [V] in 0..1: how well CLIP separates a label's videos from others. Features of labels that CLIP does not know are
    # not worth preserving.
    weights: Tensor

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        clip_text: ClipText,
        labels: Sequence[str],
        kinds: Mapping[str, str],
        features: Tensor,
        targets: Tensor,
    ) -> ClipRegulariser:
        """``features`` [n, D]: CLIP's unit frame means of training videos; ``targets`` [n, V] bool.

        A label's lift is the mean score of its videos minus the mean score of all videos, in standard deviations of
        the label's scores. Its weight is the lift divided by ``FULL_WEIGHT_LIFT``, clamped to 0..1.
        """
        weights, texts = [], []
        videos = features.to(clip_text.device).float()
        for i in range(0, len(labels), 256):
            text = F.normalize(clip_text.encode(labels[i : i + 256]), dim=-1)
            scores = videos @ text.T  # [n, 256]
            truth = targets[:, i : i + 256].to(scores.device).float()
            count = truth.sum(dim=0)
            lift = (scores * truth).sum(dim=0) / torch.where(count < MIN_VIDEOS, torch.nan, count) - scores.mean(dim=0)
            weights.append((lift / scores.std(dim=0).clamp_min(1e-6) / FULL_WEIGHT_LIFT).clamp(0, 1))
            texts.append(text)
        return cls(torch.cat(texts), _fill_by_kind(torch.cat(weights), [kinds[label] for label in labels]))

    def for_label_stage(self, kinds: Sequence[str]) -> ClipRegulariser:
        """For training the label encoder alone, on a trained branch. ``kinds``: [V].

        Weights below 0.5 become 0, higher ones are rescaled to 0..1. Pairs get 0: CLIP knows the noun of a pair and
        not its motion, so a regularised pair could not learn the motion.
        """
        is_pair = torch.tensor([kind == "pair" for kind in kinds], device=self.weights.device)
        weights = (2 * self.weights - 1).clamp(0, 1)
        return ClipRegulariser(self.texts, weights.masked_fill(is_pair, 0))


def _fill_by_kind(weights: Tensor, kinds: Sequence[str]) -> Tensor:
    # NaN becomes the mean of its kind, or 0 if the whole kind is NaN.
    names = sorted(set(kinds))
    kind = torch.tensor([names.index(kind) for kind in kinds], device=weights.device)
    for i in range(len(names)):
        of_kind = weights[kind == i]
        numbers = of_kind[~of_kind.isnan()]
        weights[(kind == i) & weights.isnan()] = numbers.mean() if len(numbers) else 0.0
    return weights
