from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vidlex.model.specs import ModelNotFound
from vidlex.model.types import FrameGeometry


@dataclass(frozen=True)
class Preprocessing:
    """What a processor of transformers does to a picture, except for its interpolation: the decoder has one of its own,
    for all models."""

    geometry: FrameGeometry  # of the decoded picture
    crop_size: int  # side of the centre that is cut from it
    mean: tuple[float, ...]  # of pixel values 0..1
    std: tuple[float, ...]


def read_processor(processor: Any) -> Preprocessing:
    """Raises ModelNotFound for a processor that cannot be followed."""
    if getattr(processor, "max_num_patches", None):  # SigLIP 2 NaFlex: as many whole patches as fit, without distortion
        side = int(processor.patch_size) * math.isqrt(int(processor.max_num_patches))
        geometry, crop_size = FrameGeometry(side, "shortest"), side
    else:
        geometry, crop_size = _read_size(processor)
    factor = processor.rescale_factor if processor.do_rescale else None
    if factor is None or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ModelNotFound(f"the model's preprocessing multiplies pixels by {factor}; only 1/255 is supported")
    if processor.do_normalize:
        mean, std = tuple(map(float, processor.image_mean)), tuple(map(float, processor.image_std))
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(geometry, crop_size, mean, std)


def _read_size(processor: Any) -> tuple[FrameGeometry, int]:
    size = dict(processor.size or {}) if processor.do_resize else {}
    if "shortest_edge" in size and "longest_edge" not in size:
        geometry = FrameGeometry(int(size["shortest_edge"]), "shortest")
    elif size.get("height") and size["height"] == size.get("width"):
        geometry = FrameGeometry(int(size["height"]), "squash")
    else:
        raise ModelNotFound(f"the model's preprocessing resizes to {size or 'nothing'}, not to one square")
    side = geometry.image_size
    crop = dict(processor.crop_size or {}) if processor.do_center_crop else {"height": side, "width": side}
    if not crop.get("height") or crop["height"] != crop.get("width") or crop["height"] > side:
        raise ModelNotFound(f"the model's preprocessing crops {crop or 'nothing'} from {side} pixels, not a square")
    return geometry, int(crop["height"])
