"""Trust in names (``--label-name-trust``): frozen CLIP also scores the labels that it knows already.

Not in the paper. Source: mixing a fine-tuned and a frozen model (Wortsman et al., CVPR 2022); the weight per label is
new here. Label and video features then have twice the width, so scoring stays one inner product. Measured effect
(SUITE.md of emoji-small, three seeds, trust 0.5 against 0): AUPR of unseen nouns 0.384 -> 0.476, on validation videos
0.586 -> 0.598.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AGREEMENT = 0.7  # cosine of a label's feature and CLIP's feature of its name above which CLIP knows the label


def fuse_with_names(features: Tensor, names: Tensor, trust: float) -> Tensor:
    """Label features and CLIP's features of the plain names, [V, D] each -> [V, 2D], to match ``concat_frame_mean``.

    With ``weight = trust * max(0, (cos - AGREEMENT) / (1 - AGREEMENT))``, a label's similarity to a video is

        (1 - weight) * label . branch + weight * |label| * name . frame_mean

    If training left a label's feature near that of its name, CLIP knows the label and its frozen tower scores it too;
    other labels are scored by the branch only.
    """
    length = features.norm(dim=1, keepdim=True)
    names = F.normalize(names, dim=1)
    agreement = (features * names).sum(dim=1, keepdim=True) / length.clamp_min(1e-6)  # [V, 1]
    weight = trust * ((agreement - AGREEMENT) / (1 - AGREEMENT)).clamp(0, 1)
    return 2**0.5 * torch.cat(((1 - weight) * features, weight * length * names), dim=1)


def concat_frame_mean(feature: Tensor, frame_mean: Tensor) -> Tensor:
    """[B, D] each -> [B, 2D] unit vectors with halves of equal length."""
    return torch.cat((F.normalize(feature, dim=-1), F.normalize(frame_mean, dim=-1)), dim=-1) / 2**0.5
