"""Writing what training made in forms that others read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn


def write_open_clip_folder(
    clip: nn.Module, model_cfg: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], folder: Path
) -> Path:
    """A CLIP as open_clip itself loads it (``local-dir:<folder>``): config, safetensors, "squash" preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    size = model_cfg["vision_cfg"]["image_size"]
    preprocess = {"size": size, "mean": list(mean), "std": list(std), "interpolation": "bilinear"}
    config = {"model_cfg": dict(model_cfg), "preprocess_cfg": {**preprocess, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder
