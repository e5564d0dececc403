from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vidlex.model.video.towers.feature_map import OpenClipResNet, TimmFeatureMap
from vidlex.model.video.towers.open_clip_vit import OpenClipVit
from vidlex.model.video.towers.timm_vit import TimmEva, TimmVit
from vidlex.model.video.towers.tower import Tower


def create_tower(visual: Any) -> Tower:
    """``visual`` is open_clip's image tower (``clip.visual``) or a timm model, in evaluation mode.

    Raises ValueError with the reason for a tower of another kind.
    """
    if isinstance(visual, VisionTransformer):
        return OpenClipVit(visual)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNet(visual)
    trunk, head = (visual.trunk, visual.head) if isinstance(visual, TimmModel) else (visual, nn.Identity())
    if _runs_as(trunk, TimmVisionTransformer):
        return TimmVit(trunk, head)
    if _runs_as(trunk, Eva):
        return TimmEva(trunk, head)
    if hasattr(trunk, "forward_head") and getattr(trunk, "pretrained_cfg", {}).get("pool_size"):
        return TimmFeatureMap(trunk, head)
    raise ValueError(
        "the temporal branch needs open_clip's VisionTransformer or ResNet, or timm's VisionTransformer, Eva or a "
        f"model with a feature map, not {type(trunk).__name__}"
    )


def _runs_as(trunk: Any, kind: type) -> bool:  # a subclass may run its blocks in another way
    return isinstance(trunk, kind) and type(trunk).forward_features is kind.forward_features  # type: ignore[attr-defined]
