"""Small random-weight variants of open_clip's and timm's models: fewer and narrower blocks, all else as configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file

from vidlex.model.video.towers.table import TowerRow

WIDTH = 64
TEXT = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"embed_dim": WIDTH, "depth": 3, "num_heads": 4, "img_size": 64}
SMALL: dict[str, dict[str, Any]] = {  # arguments of timm's models
    "eva02_base_patch16_clip_224": VIT,
    "vit_pe_core_base_patch16_224": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "vit_base_mci_224": {"depth": 2, "mlp_ratio": 1, "img_size": 64},  # its stem fixes the width
    "fastvit_mci0": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64)},
    "fastvit_mci1": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 64)},
    "vit_small_patch14_reg4_dinov2": VIT | {"img_size": 56},
    "vit_small_patch16_dinov3": {**VIT, "img_size": 64},
    "vit_small_patch16_rope_mixed_224": VIT,
    "efficientnet_lite2": {},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 2, "img_size": 64,
    },
}  # fmt: skip
_create_model = timm.create_model


def create_small_timm(name: str, **arguments: Any) -> Any:
    """To stand in for ``timm.create_model``, which open_clip calls without arguments for the size."""
    return _create_model(name, **(SMALL[name] | arguments))


def small_config(row: TowerRow) -> dict[str, Any]:
    """open_clip's configuration; that of a timm tower has a small text tower of CLIP's kind."""
    if row.library == "timm":
        pool = "token" if row.tmp.startswith("the CLS") else "avg"
        vision = {"timm_model_name": row.name, "timm_pool": pool, "timm_proj": "linear", "image_size": 64}
        if "patch14" in row.name:
            vision["image_size"] = 56
        return {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    config: dict[str, Any] = open_clip.get_model_config(row.name)
    vision = config["vision_cfg"] | {"image_size": 64}
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16}
    elif "layers" in vision:
        vision |= {"layers": 3, "width": WIDTH, "head_width": 16}
        vision["image_size"] -= vision["image_size"] % vision["patch_size"]
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT
    text = {k: v for k, v in config["text_cfg"].items() if k not in ("hf_tokenizer_name", "tokenizer_kwargs")} | TEXT
    return config | {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}


def write_small_model(row: TowerRow, folder: Path, seed: int = 0) -> Path:
    """A folder for ``local-dir:`` of open_clip. ``timm.create_model`` must be ``create_small_timm``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_config(row)}), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.abs().max() < 1e-3:  # biases, class tokens
                    parameter.add_(torch.randn(parameter.shape) * 0.02)
                if "gamma" in name:  # layer scales, which would hide the blocks
                    parameter.add_(0.5)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
