from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Targets are int8. Unknown pairs have no part in losses, metrics and calibration.
POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1


def weighted_bce(
    logits: Tensor, targets: Tensor, weights: Tensor, negative_weight: float, num_positives: Tensor | None = None
) -> Tensor:
    """``-sum_v [ sum_{l in P} log p + w * sum_{l in N} log(1 - p) ]`` (paper section 3.3), per positive of the batch.

    ``logits`` [B, V]; ``targets`` [B, V] int8: 1 in P, 0 in N, -1 unknown, in neither sum. ``weights`` [V] multiplies
    all terms of a label: importance weights of sampled labels, or the weight of the label's kind. ``num_positives`` is
    that of the whole batch when the arguments are a micro-batch; the losses of the micro-batches then add up to that of
    the batch.
    """
    is_positive, is_negative = targets == POSITIVE, targets == NEGATIVE
    positive = -(F.logsigmoid(logits) * is_positive)
    negative = -(F.logsigmoid(-logits) * is_negative) * negative_weight
    count = is_positive.sum() if num_positives is None else num_positives
    total: Tensor = ((positive + negative) * weights).sum() / count.clamp_min(1)
    return total
