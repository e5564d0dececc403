"""Penalties on forgetting what frozen CLIP knows of the labels (``--video-hold``, ``--label-hold``).

Not in the paper. Source: the penalty on changed outputs is that of Learning without Forgetting (Li and Hoiem, ECCV
2016); the weight of a label by CLIP's own knowledge of it is new here. Measured effect of both together (SUITE.md of
emoji-small, 1,500 joint steps): AUPR of unseen nouns 0.232 -> 0.408, of seen labels 0.601 -> 0.558, of rare pairs
0.270 -> 0.190. The effect of each alone is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.text.clip_text import ClipText
from vidlex.model.train.extensions.extension import Extension, StepFeatures
from vidlex.model.train.losses import POSITIVE

FULL_WEIGHT_LIFT = 2.0  # in standard deviations of a label's scores: the lift of weight 1
MIN_VIDEOS = 2  # a label with fewer training videos gets the mean weight of its kind


@dataclass(frozen=True, eq=False)
class ClipKnowledge:
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
    ) -> ClipKnowledge:
        """``features`` [n, D]: CLIP's unit frame means of training videos; ``targets`` [n, V] int8.

        A label's lift is the mean score of its videos minus the mean score of all videos, in standard deviations of
        the label's scores. Its weight is the lift divided by ``FULL_WEIGHT_LIFT``, clamped to 0..1.
        """
        weights, texts = [], []
        videos = features.to(clip_text.device).float()
        for i in range(0, len(labels), 256):
            text = F.normalize(clip_text.encode(labels[i : i + 256]), dim=-1)
            scores = videos @ text.T  # [n, 256]
            truth = (targets[:, i : i + 256].to(scores.device) == POSITIVE).float()
            count = truth.sum(dim=0)
            lift = (scores * truth).sum(dim=0) / torch.where(count < MIN_VIDEOS, torch.nan, count) - scores.mean(dim=0)
            weights.append((lift / scores.std(dim=0).clamp_min(1e-6) / FULL_WEIGHT_LIFT).clamp(0, 1))
            texts.append(text)
        return cls(torch.cat(texts), _fill_by_kind(torch.cat(weights), [kinds.get(label, "") for label in labels]))

    def on_finished_branch(self, is_composed: Tensor) -> ClipKnowledge:
        """For training the label encoder alone, on the features of a trained branch. ``is_composed``: [V] bool.

        Weights below 0.5 become 0, higher ones are rescaled to 0..1. Composed labels get 0: CLIP knows the noun of
        "dog jumping" and not its motion, so a regularised label could not learn the motion.
        """
        weights = (2 * self.weights - 1).clamp(0, 1)
        return ClipKnowledge(self.texts, weights.masked_fill(is_composed.to(weights.device), 0))


class ClipHold(Extension):
    """``is_composed``: [V] bool."""

    def __init__(self, knowledge: ClipKnowledge, is_composed: Tensor, *, video_hold: float, label_hold: float) -> None:
        self.knowledge, self.video_hold, self.label_hold = knowledge, video_hold, label_hold
        self.names_of_one = knowledge.texts[~is_composed]

    def losses(self, features: StepFeatures) -> Mapping[str, tuple[float, Tensor]]:
        texts, weights = self.knowledge.texts[features.index], self.knowledge.weights[features.index]
        frame_means, num_videos = features.frame_means, features.num_videos
        terms = {}
        if frame_means is not None:
            change = features.videos - frame_means
            loss = video_distillation_loss(change, self.names_of_one, features.scale, num_videos)
            terms["video_hold"] = self.video_hold, loss
        videos = features.videos if frame_means is None else frame_means
        loss = label_distillation_loss(
            features.labels - texts, videos, weights, features.scale, num_videos * features.num_labels
        )
        return {**terms, "label_hold": (self.label_hold, loss)}


def video_distillation_loss(change: Tensor, texts: Tensor, scale: Tensor, num_videos: int) -> Tensor:
    """Mean squared change of frozen CLIP's logits when its video features are replaced.

    ``scale^2 * mean_v mean_l (change_v . text_l)^2`` with ``change`` [B, D], video features minus CLIP's frame means
    (both of unit length), and ``texts`` [V, D], CLIP's unit features of the bare names. Changes orthogonal to all
    names, such as motion, cost nothing. The form is that of Learning without Forgetting (Li and Hoiem, ECCV 2016).
    ``num_videos`` is that of the whole batch: the losses of micro-batches add up.
    """
    total: Tensor = (scale * change.float() @ texts.T).square().mean(dim=1).sum() / num_videos
    return total


def label_distillation_loss(
    change: Tensor, videos: Tensor, label_weights: Tensor, scale: Tensor, num_scores: int
) -> Tensor:
    """Mean squared change of frozen CLIP's logits when its label features are replaced.

    ``scale^2 * mean_v mean_l weight_l * (video_v . change_l)^2`` with ``change`` [V, D], label features minus CLIP's
    unit features of the bare names, ``videos`` [B, D], CLIP's unit frame means, and ``label_weights`` [V] in 0..1.
    Changes orthogonal to all frame means cost nothing, so a label can name an object and its motion. A penalty on the
    features themselves, as in KgCoOp (Yao et al., CVPR 2023), would prevent that. ``num_scores`` is B * V of the whole
    step: the losses of micro-batches add up.
    """
    squares = (scale * videos.float() @ change.float().T).square()  # [B, V]
    total: Tensor = (squares * label_weights).sum() / num_scores
    return total


def _fill_by_kind(weights: Tensor, kinds: Sequence[str]) -> Tensor:
    # NaN becomes the mean of its kind, or 0 if the whole kind is NaN.
    names = sorted(set(kinds))
    kind = torch.tensor([names.index(kind) for kind in kinds], device=weights.device)
    for i in range(len(names)):
        of_kind = weights[kind == i]
        numbers = of_kind[~of_kind.isnan()]
        weights[(kind == i) & weights.isnan()] = numbers.mean() if len(numbers) else 0.0
    return weights
