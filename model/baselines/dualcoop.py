"""DualCoOp (Sun et al., NeurIPS 2022): a positive and a negative learned context, and a binary decision per label.

``p = softmax over {negative, positive} = sigmoid(z_pos - z_neg)``. The original pools the regions of a ResNet's feature
map and their mean, with weights per class. The patch tokens of a ViT are not trained to match text, so the regions of a
video are its frames and their mean; or the frame mean alone, in which case ``z_pos - z_neg`` is an inner product with
``t_pos - t_neg`` and a label can be stored as a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.coop import encode_prompted, initial_context
from vidlex.model.text.clip_text import ClipText

REGION_SCALE, POOLED_SCALE = 20.0, 5.0
LOGIT_SCALE = REGION_SCALE * POOLED_SCALE


class DualCoOpLabelEncoder(ClipLabelEncoder):
    def __init__(self, clip_text: ClipText, *, num_context: int = 16, seed: int = 0) -> None:
        super().__init__(clip_text)
        generator = torch.Generator().manual_seed(seed)
        contexts = [initial_context(clip_text, num_context, "", generator).to(clip_text.device) for _ in range(2)]
        self.positive, self.negative = nn.Parameter(contexts[0]), nn.Parameter(contexts[1])

    @property
    def texts_per_label(self) -> int:
        return 2

    def check_label(self, name: str) -> None:
        self.clip_text.check(f"{name}.", len(self.positive))

    def texts(self, name: str) -> list[str]:
        return [f"[positive] {name}.", f"[negative] {name}."]

    def encode_prompt_pair(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:  # [V, D] unit vectors each
        positive = encode_prompted(self.clip_text, names, self.positive)
        negative = encode_prompted(self.clip_text, names, self.negative)
        return positive, negative

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D]: half of ``t_pos - t_neg``, of length at most 1; its logit scale is twice ``LOGIT_SCALE``."""
        positive, negative = self.encode_prompt_pair(names)
        return (positive - negative) / 2


def aggregate(regions: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """``z_pos - z_neg`` [B, V] from unit features of R regions [B, R, D] and unit prompts [V, D].

    Both polarities are pooled with the softmax of the positive scores.
    """
    z_pos = REGION_SCALE * torch.einsum("brd,vd->bvr", regions, positive)
    z_neg = REGION_SCALE * torch.einsum("brd,vd->bvr", regions, negative)
    weights = z_pos.softmax(dim=-1)
    return POOLED_SCALE * ((z_pos - z_neg) * weights).sum(dim=-1)  # [B, V]


def frame_regions(frame_features: Tensor) -> Tensor:  # [B, T, D] -> [B, 1 + T, D]
    mean = frame_features.mean(dim=1, keepdim=True)
    return F.normalize(torch.cat((mean, frame_features), dim=1), dim=-1)
