"""How the extensions change the features of labels and videos. With the default settings there are none: the paper.

The settings are fields of ``LabelEncoderConfig``, which a checkpoint keeps. ``renormalize`` (AUPR of seen labels 0.336
-> 0.333) and ``with_name`` (0.336 -> 0.316, of rare pairs 0.107 -> 0.162) were measured as ablations of the label side
(SUITE.md of emoji-small, 150 steps without a branch, one seed). ``soft_behind`` (unseen nouns and words 0.032 -> 0.052,
200 joint steps, one seed) is a place in the text that CLIP reads, an argument of ``ClipText.encode_with_soft``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.config import LabelEncoderConfig
from vidlex.model.extensions.name_trust import concat_frame_mean, fuse_with_names

VideoHead = Callable[[Tensor, Tensor], Tensor]  # feature and frame mean, [B, D] each -> [B, D or 2D] unit vectors


def extends_labels(config: LabelEncoderConfig) -> bool:
    return config.with_name or config.renormalize or config.name_trust > 0


def extended_label_features(texts: Tensor, encode_names: Callable[[], Tensor], config: LabelEncoderConfig) -> Tensor:
    """Text features [V, N * K, D] -> label features [V, D], or [V, 2D] with ``name_trust``.

    ``encode_names`` returns CLIP's features of the names alone, [V, D].
    """
    with torch.no_grad():
        names = encode_names() if config.with_name or config.name_trust else None
    if config.with_name and names is not None:
        texts = torch.cat((texts, names[:, None]), dim=1)  # [V, N * K + 1, D]
    feature = F.normalize(texts, dim=-1).mean(dim=1)  # [V, D]
    if config.renormalize:
        feature = F.normalize(feature, dim=-1)
    if names is not None and config.name_trust:
        feature = fuse_with_names(feature, names, config.name_trust)
    return feature


def label_dim(clip_dim: int, config: LabelEncoderConfig) -> int:
    return 2 * clip_dim if config.name_trust else clip_dim


def video_head(config: LabelEncoderConfig) -> VideoHead | None:
    """What makes a video's feature match the labels'; None in the paper."""
    return concat_frame_mean if config.name_trust else None
