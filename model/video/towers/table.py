"""The image towers that the branch is tested with: data for ``tests/model/test_towers.py`` and ``model/README.md``."""

from __future__ import annotations

from typing import Literal, NamedTuple


class TowerRow(NamedTuple):
    name: str  # open_clip's or timm's name of the architecture
    library: Literal["open_clip", "timm"]  # of the name; timm's can be the image tower of an open_clip configuration
    adapter: str
    tmp: str  # what stands for the paper's TMP
    blocks: Literal["copied", "new"]  # of the branch's spatial attention
    text: str = "yes"  # whether its text tower encodes labels


_CLS = "the CLS token, as in the paper"
_MEAN = "all patches, whose mean is pooled"
_MAP = "all tokens, pooled by attention"
_POSITIONS = "all positions of the last feature map"

TOWER_ROWS = (
    TowerRow("ViT-B-32", "open_clip", "OpenClipVit", _CLS, "copied"),
    TowerRow("ViT-B-16-quickgelu", "open_clip", "OpenClipVit", _CLS, "copied"),
    TowerRow("ViT-H-14", "open_clip", "OpenClipVit", _CLS, "copied"),
    TowerRow("ViT-H-14-CLIPA", "open_clip", "OpenClipVit", _MEAN, "copied"),
    TowerRow("coca_ViT-B-32", "open_clip", "OpenClipVit", _MAP, "copied", "refused: it has a class token"),
    TowerRow("RN50", "open_clip", "OpenClipResNet", _POSITIONS, "new"),
    TowerRow("EVA02-B-16", "open_clip", "TimmEva", _CLS, "copied"),
    TowerRow("PE-Core-B-16", "open_clip", "TimmEva", _MAP, "copied"),
    TowerRow("ViT-B-16-SigLIP", "open_clip", "TimmVit", _MAP, "copied"),
    TowerRow("ViT-B-16-SigLIP2", "open_clip", "TimmVit", _MAP, "copied"),
    TowerRow("MobileCLIP-B", "open_clip", "TimmVit", _CLS, "copied"),
    TowerRow("MobileCLIP-S1", "open_clip", "TimmFeatureMap", _POSITIONS, "new"),
    TowerRow("MobileCLIP2-S0", "open_clip", "TimmFeatureMap", _POSITIONS, "new"),
    TowerRow("convnext_base", "open_clip", "TimmFeatureMap", _POSITIONS, "new"),
    TowerRow("vit_small_patch14_reg4_dinov2", "timm", "TimmVit", _CLS, "copied", "none"),
    TowerRow("vit_small_patch16_dinov3", "timm", "TimmEva", _MEAN, "copied", "none"),
    TowerRow("vit_small_patch16_rope_mixed_224", "timm", "TimmEva", _CLS, "copied", "none"),
    TowerRow("efficientnet_lite2", "timm", "TimmFeatureMap", _POSITIONS, "new", "none"),
    TowerRow("swin_tiny_patch4_window7_224", "timm", "TimmFeatureMap", _POSITIONS, "new", "none"),
)
