"""The encoders of a checkpoint with the method "kernel"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidlex.model.checkpoint import CheckpointConfig, CheckpointError, check_fits, check_llm, digest_tensors
from vidlex.model.kernel.label_encoder import KernelLabelEncoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.video.still_motion import StillMotionEncoder
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.tower import fetch_tower

# parts of model.safetensors; statistics of a calibration are the fourth
LABEL, VIDEO, MOTION = "label.", "video.", "motion."


@dataclass(frozen=True, eq=False)
class ImageTower:
    """An image classifier of timm without its classifier, frozen, in evaluation mode, float32, on the CPU."""

    model: Any
    mean: tuple[float, float, float]  # of pixel values 0..1
    std: tuple[float, float, float]
    image_size: int
    digest: str  # of all stored tensors


def create_tower(source: str) -> ImageTower:
    """``source`` as for ``fetch_tower``. Raises WeightsError or CheckpointError."""
    import timm

    folder = fetch_tower(source)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pretrained = config["pretrained_cfg"]
        model: Any = timm.create_model(config["architecture"], pretrained=False, num_classes=config["num_classes"])
        state = load_file(folder / "model.safetensors")
        missing, unknown = model.load_state_dict(state, strict=False)
        wrong = [name for name in (*missing, *unknown) if not name.endswith("num_batches_tracked")]
        if wrong:
            raise ValueError(f"missing or unknown tensors: {', '.join(wrong[:5])}")
        mean, std, size = tuple(pretrained["mean"]), tuple(pretrained["std"]), int(pretrained["input_size"][-1])
    except (SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot load the image tower in {folder} ({type(error).__name__}: {error})") from error
    model.reset_classifier(0)
    return ImageTower(model.eval().requires_grad_(False), mean, std, size, digest_tensors(state))


def load_encoders(
    config: CheckpointConfig, tensors: Mapping[str, Tensor]
) -> tuple[StillMotionEncoder, KernelLabelEncoder]:
    """On the CPU. Raises CheckpointError or WeightsError."""
    kernel = config.kernel
    if kernel is None:
        raise CheckpointError("the checkpoint has the method kernel but no configuration of it")
    tower = create_tower(config.clip.source)
    if tower.digest != config.clip.digest:
        raise CheckpointError(
            f"the image tower {config.clip.source} has other weights than in this checkpoint's training"
        )
    folder = fetch_llm(kernel.llm)
    check_llm(config, kernel.llm, folder)
    try:
        video = StillMotionEncoder(
            tower.model, kernel, num_frames=config.video.num_frames, mean=config.clip.mean, std=config.clip.std
        )
        label = KernelLabelEncoder(load_llm(folder), kernel)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not fit the model: {error}") from error
    load_tensors(tensors, video, label)
    return video, label


def load_tensors(tensors: Mapping[str, Tensor], video: StillMotionEncoder, label: KernelLabelEncoder) -> None:
    """Raises CheckpointError for tensors that are missing, unknown, of another shape or not finite."""
    stored = {name: value for name, value in tensors.items() if name.startswith((LABEL, VIDEO, MOTION))}
    own = stored_tensors(video, label)
    check_fits(stored, own)
    for name, value in stored.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(f"the tensor {name} has values that are not finite")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])


def stored_tensors(video: StillMotionEncoder, label: KernelLabelEncoder) -> dict[str, Tensor]:
    """The tensors of both encoders, under their names in ``model.safetensors``."""
    tensors = {f"{LABEL}{name}": value for name, value in label.trainable_state_dict().items()}
    for name, value in video.stored_state_dict().items():
        tensors[name if name.startswith(MOTION) else f"{VIDEO}{name}"] = value
    return tensors
