"""The paper's loss and DualCoOp's, one formula each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_bce(
    logits: Tensor, targets: Tensor, weights: Tensor, negative_weight: float, num_positives: Tensor | None = None
) -> Tensor:
    """``-sum_v [ sum_{l in P} log p + w * sum_{l in N} log(1 - p) ]`` (paper section 3.3), per positive of the batch.

    ``logits`` and bool ``targets`` [B, V]; ``weights`` [V] weighs a label's column as a whole: it makes up for the
    labels that a step leaves out (importance weights) or lifts rare concept types, positives and negatives alike.
    ``num_positives``: of the whole batch, where these are only some of its pairs; the losses of its parts then add up.
    """
    y = targets.float()
    positive = -(F.logsigmoid(logits) * y)
    negative = -(F.logsigmoid(-logits) * (1 - y)) * negative_weight
    count = y.sum() if num_positives is None else num_positives
    total: Tensor = ((positive + negative) * weights).sum() / count.clamp_min(1)
    return total


def video_hold(change: Tensor, texts: Tensor, scale: Tensor, num_videos: int) -> Tensor:
    """How far video features have left CLIP's where CLIP's own reading of the labels looks (not in the paper).

    ``change`` [B, D]: unit video features less CLIP's unit frame means; ``texts`` [V, D]: CLIP's unit features of the
    bare names. ``scale^2 * mean_v mean_l (change_v . text_l)^2``, the mean square of what the branch changed in the
    logits of frozen CLIP. What it adds where no name looks, motion for one, is free. Learning without forgetting
    (Li and Hoiem, ECCV 2016) holds the old outputs in this way. ``num_videos``: of the whole batch, where these are
    some of it; parts add up.
    """
    total: Tensor = (scale * change.float() @ texts.T).square().mean(dim=1).sum() / num_videos
    return total


def label_hold(change: Tensor, videos: Tensor, known: Tensor, scale: Tensor, num_scores: int) -> Tensor:
    """How far labels have left CLIP's own reading of them where CLIP's videos look (not in the paper).

    ``change`` [V, D]: label features less CLIP's unit features of the bare names; ``videos`` [B, D]: CLIP's unit frame
    means; ``known`` [V] in 0..1. ``scale^2 * mean_v mean_l known_l * (video_v . change_l)^2``: ``video_hold`` with the
    sides exchanged, for labels that CLIP knows. What a label gains where no still frame differs is free, so a thing
    and its motion can be one label; holding the features themselves, as KgCoOp does (Yao et al., CVPR 2023), is not.
    ``num_scores``: B * V of the whole step; parts add up.
    """
    squares = (scale * videos.float() @ change.float().T).square()  # [B, V]
    total: Tensor = (squares * known).sum() / num_scores
    return total


def asymmetric(
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
    ``q = max(p - margin, 0)``. The focusing factors carry no gradient; logarithms stop at 1e-6.
    """
    count = targets.sum() if num_positives is None else num_positives
    p = torch.sigmoid(logits.float())
    absent = (1 - p + margin).clamp_max(1)
    with torch.no_grad():
        factor = torch.where(targets, (1 - p) ** focus[0], (1 - absent) ** focus[1])
    log = torch.where(targets, p.clamp_min(1e-6).log(), absent.clamp_min(1e-6).log())
    total: Tensor = -(factor * log * weights).sum() / count.clamp_min(1)
    return total
