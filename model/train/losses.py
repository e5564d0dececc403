from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_bce(
    logits: Tensor, targets: Tensor, weights: Tensor, negative_weight: float, num_positives: Tensor | None = None
) -> Tensor:
    """``-sum_v [ sum_{l in P} log p + w * sum_{l in N} log(1 - p) ]`` (paper section 3.3), per positive of the batch.

    ``logits`` and bool ``targets`` [B, V]. ``weights`` [V] multiplies all terms of a label: importance weights of
    sampled labels, or the weight of the label's kind. ``num_positives`` is that of the whole batch when the arguments
    are a micro-batch; the losses of the micro-batches then add up to that of the batch.
    """
    y = targets.float()
    positive = -(F.logsigmoid(logits) * y)
    negative = -(F.logsigmoid(-logits) * (1 - y)) * negative_weight
    count = y.sum() if num_positives is None else num_positives
    total: Tensor = ((positive + negative) * weights).sum() / count.clamp_min(1)
    return total


def video_distillation_loss(change: Tensor, texts: Tensor, scale: Tensor, num_videos: int) -> Tensor:
    """Mean squared change of frozen CLIP's logits when its video features are replaced (not in the paper).

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
    """Mean squared change of frozen CLIP's logits when its label features are replaced (not in the paper).

    ``scale^2 * mean_v mean_l weight_l * (video_v . change_l)^2`` with ``change`` [V, D], label features minus CLIP's
    unit features of the bare names, ``videos`` [B, D], CLIP's unit frame means, and ``label_weights`` [V] in 0..1.
    Changes orthogonal to all frame means cost nothing, so a label can name an object and its motion. A penalty on the
    features themselves, as in KgCoOp (Yao et al., CVPR 2023), would prevent that. ``num_scores`` is B * V of the whole
    step: the losses of micro-batches add up.
    """
    squares = (scale * videos.float() @ change.float().T).square()  # [B, V]
    total: Tensor = (squares * label_weights).sum() / num_scores
    return total


def asymmetric_loss(
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
    ``q = max(p - margin, 0)``. The focusing factors carry no gradient; the arguments of logarithms are at least 1e-6.
    """
    count = targets.sum() if num_positives is None else num_positives
    p = torch.sigmoid(logits.float())
    absent = (1 - p + margin).clamp_max(1)
    with torch.no_grad():
        factor = torch.where(targets, (1 - p) ** focus[0], (1 - absent) ** focus[1])
    log = torch.where(targets, p.clamp_min(1e-6).log(), absent.clamp_min(1e-6).log())
    total: Tensor = -(factor * log * weights).sum() / count.clamp_min(1)
    return total
