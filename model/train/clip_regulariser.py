"""What frozen CLIP knows of the labels, so that training does not lose it (not in the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.text.clip_text import ClipText

WELL_KNOWN = 2.0
"""Standard deviations of a label's score by which CLIP lifts its videos where it is said to know the label."""

FEW = 2
"""Videos below which nothing is said of a label of its own."""


@dataclass(frozen=True, eq=False)
class Held:
    """CLIP's own reading of some labels."""

    texts: Tensor
    """[V, D]: unit features of the bare names."""
    known: Tensor
    """[V] in 0..1: how well CLIP tells a label's videos from others; nothing of its reading of an unknown word is worth
    keeping."""

    def settling(self, kinds: Sequence[str]) -> Held:
        """What is held where labels settle on the videos of a finished branch (``kinds`` [V]): names that CLIP tells by
        more than half of ``WELL_KNOWN``. Pairs are free: what CLIP knows of them is their thing, and held to it they
        cannot take the motion in."""
        is_pair = torch.tensor([kind == "pair" for kind in kinds], device=self.known.device)
        known = (2 * self.known - 1).clamp(0, 1)
        return Held(self.texts, known.masked_fill(is_pair, 0))


@torch.no_grad()
def hold(
    clip_text: ClipText, labels: Sequence[str], kinds: Mapping[str, str], features: Tensor, targets: Tensor
) -> Held:
    """``features`` [n, D]: CLIP's unit frame means of training videos; ``targets`` [n, V] bool.

    ``known`` is how far the mean score of a label's videos stands above all videos', in standard deviations of its
    scores, as a part of ``WELL_KNOWN``; for a label of fewer than two videos, the mean over its kind.
    """
    known, texts = [], []
    videos = features.to(clip_text.device).float()
    for i in range(0, len(labels), 256):
        text = F.normalize(clip_text.encode(labels[i : i + 256]), dim=-1)
        scores = videos @ text.T  # [n, 256]
        truth = targets[:, i : i + 256].to(scores.device).float()
        count = truth.sum(dim=0)
        lift = (scores * truth).sum(dim=0) / torch.where(count < FEW, torch.nan, count) - scores.mean(dim=0)
        known.append((lift / scores.std(dim=0).clamp_min(1e-6) / WELL_KNOWN).clamp(0, 1))
        texts.append(text)
    return Held(torch.cat(texts), _of_kind(torch.cat(known), [kinds[label] for label in labels]))


def _of_kind(known: Tensor, kinds: Sequence[str]) -> Tensor:
    """``known`` [V] with the mean over its kind where it is no number."""
    names = sorted(set(kinds))
    kind = torch.tensor([names.index(kind) for kind in kinds], device=known.device)
    for i in range(len(names)):
        own = known[kind == i]
        rest = own[~own.isnan()]
        known[(kind == i) & known.isnan()] = rest.mean() if len(rest) else 0.0
    return known
