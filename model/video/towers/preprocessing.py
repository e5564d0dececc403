"""How frames become a tower's input, from open_clip's or timm's own configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.data.config import resolve_model_data_config

from vidlex.model.types import FrameGeometry


class Preprocessing(NamedTuple):
    mean: tuple[float, float, float]  # of pixel values 0..1
    std: tuple[float, float, float]
    geometry: FrameGeometry


def read_preprocessing(visual: Any) -> Preprocessing:
    """``visual`` is the tower of a model that open_clip created, or a timm model.

    Not applied are ``interpolation`` (the decoder scales bicubically) and timm's ``crop_pct``, an enlargement before
    the centre crop: as with open_clip, the short side of the picture fills the input. Raises ValueError unless the
    input is square.
    """
    config = getattr(visual, "preprocess_cfg", None)
    if config is not None:
        size, mode = config["size"], config.get("resize_mode", "shortest")
    else:
        resolve: Any = resolve_model_data_config
        config = resolve(visual)
        fixed = getattr(getattr(visual, "patch_embed", None), "img_size", None)
        size, mode = fixed or config["input_size"][1:], "squash" if config["crop_mode"] == "squash" else "shortest"
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"frames are square, but the image tower takes {height} x {width} pixels")
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), FrameGeometry(int(height), mode))
