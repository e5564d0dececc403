"""DualCoOp (Sun et al., NeurIPS 2022): a positive and a negative learned context, each label a binary choice.

``p = softmax over {negative, positive} = sigmoid(z_pos - z_neg)``. The original pools the places of a ResNet's map by
weights of each class. A ViT has no such map (its patch tokens are not trained to meet text), so for videos the places
are the frames and their mean, as the original has its map and its global mean; or one place alone, the video's mean,
and then ``z_pos - z_neg`` is an inner product with ``t_pos - t_neg`` and a label can be stored as a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.coop import encode_prompted, start_context
from vidlex.model.text.clip_text import ClipText

PLACE_SCALE, POOLED_SCALE = 20.0, 5.0
LOGIT_SCALE = PLACE_SCALE * POOLED_SCALE


class DualCoOpLabelEncoder(ClipLabelEncoder):
    """Two contexts of ``num_context`` vectors, shared by all classes."""

    def __init__(self, clip_text: ClipText, *, num_context: int = 16, seed: int = 0) -> None:
        super().__init__(clip_text)
        generator = torch.Generator().manual_seed(seed)
        starts = [start_context(clip_text, num_context, "", generator).to(clip_text.device) for _ in range(2)]
        self.positive, self.negative = nn.Parameter(starts[0]), nn.Parameter(starts[1])

    @property
    def texts_per_label(self) -> int:
        return 2

    def check_label(self, name: str) -> None:
        self.clip_text.check(f"{name}.", len(self.positive))

    def texts(self, name: str) -> list[str]:
        return [f"[positive] {name}.", f"[negative] {name}."]

    def both(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit features of the positive and of the negative prompts, [V, D] each."""
        return encode_prompted(self.clip_text, names, self.positive), encode_prompted(
            self.clip_text, names, self.negative
        )

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D]: half of ``t_pos - t_neg`` (length at most 1); its logit scale is twice ``LOGIT_SCALE``."""
        positive, negative = self.both(names)
        return (positive - negative) / 2


def aggregate(places: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """``z_pos - z_neg`` [B, V] from unit features of R places [B, R, D] and unit prompts [V, D].

    The weights of the places are the softmax of the positive scores and serve both polarities.
    """
    z_pos = PLACE_SCALE * torch.einsum("brd,vd->bvr", places, positive)
    z_neg = PLACE_SCALE * torch.einsum("brd,vd->bvr", places, negative)
    weights = z_pos.softmax(dim=-1)
    return POOLED_SCALE * ((z_pos - z_neg) * weights).sum(dim=-1)


def frame_places(frame_features: Tensor) -> Tensor:
    """[B, T, D] -> [B, T + 1, D] unit features: the frames and their mean."""
    mean = frame_features.mean(dim=1, keepdim=True)
    return F.normalize(torch.cat((mean, frame_features), dim=1), dim=-1)
