"""The paper's loss, one formula."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_bce(logits: Tensor, targets: Tensor, weights: Tensor, negative_weight: float) -> Tensor:
    """``-sum_v [ sum_{l in P} log p + w * sum_{l in N} log(1 - p) ]`` (paper section 3.3), per positive of the batch.

    ``logits`` and bool ``targets`` [B, V]; ``weights`` [V] weighs a label's column as a whole: it makes up for the
    labels that a step leaves out (importance weights) or lifts rare concept types, positives and negatives alike.
    """
    y = targets.float()
    positive = -(F.logsigmoid(logits) * y)
    negative = -(F.logsigmoid(-logits) * (1 - y)) * negative_weight
    total: Tensor = ((positive + negative) * weights).sum() / y.sum().clamp_min(1.0)
    return total
