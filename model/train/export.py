"""Writing what training made in forms that others read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidlex.model.checkpoint import (
    CheckpointConfig,
    ClipSource,
    check_fits,
    digest_llm,
    load_checkpoint,
    save_checkpoint,
)
from vidlex.model.eval.calibration import fit_platt
from vidlex.model.eval.metrics import peak_f1
from vidlex.model.factory import Clip
from vidlex.model.scoring import Scorer
from vidlex.model.train.task import OpenVocabularyNetwork


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


def write_checkpoint(
    folder: Path,
    network: OpenVocabularyNetwork,
    clip: Clip,
    llm_folder: Path,
    *,
    checkpoint_id: str,
    trained_labels: Sequence[str],
    validation: tuple[Tensor, Tensor],
    store_clip: bool = True,
    half: bool = True,
) -> None:
    """A trained network as a checkpoint that can be served.

    ``validation``: logits and bool targets [n, V] of videos that training did not see; calibration and threshold come
    from them. ``store_clip`` puts CLIP's weights into it; otherwise it names them and keeps their digest. ``half``
    stores float16.
    """
    logits, targets = (values.numpy() for values in validation)
    calibration = fit_platt(logits, targets)
    _, best_logit = peak_f1(logits, targets)
    source = replace(clip.source, digest=clip.digest)
    tensors = _learned(network)
    if store_clip:
        source = ClipSource("stored", source.mean, source.std, source.geometry, clip.model_cfg)
        tensors |= {f"clip.{name}": value for name, value in clip.model.state_dict().items()}
    config = CheckpointConfig(
        id=checkpoint_id,
        clip=source,
        video=network.video.config,
        label=network.label.config,
        scorer=Scorer(network.log_scale.exp().item(), network.bias.item(), calibration),
        default_threshold=round(float(calibration.probability(best_logit)), 4),
        llm_digest=digest_llm(llm_folder),
        trained_labels=tuple(trained_labels),
    )
    save_checkpoint(folder, config, tensors, half=half)


def read_checkpoint(folder: Path, network: OpenVocabularyNetwork) -> None:
    """Put what a checkpoint learned back into a network of its shape. Raises CheckpointError for another's."""
    config, tensors, _ = load_checkpoint(folder)
    learned = {name: value for name, value in tensors.items() if not name.startswith("clip.")}
    own = _learned(network)
    check_fits(learned, own)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(learned[name])
        network.log_scale.fill_(math.log(config.scorer.logit_scale))
        network.bias.fill_(config.scorer.logit_bias)
    network.video.fold_alpha = 1.0
    network.trust_names(config.label.name_trust)


def _learned(network: OpenVocabularyNetwork) -> dict[str, Tensor]:
    """What a checkpoint keeps of our two encoders."""
    tensors: dict[str, Tensor] = {f"branch.{name}": value for name, value in network.video.trainable().items()}
    return tensors | {f"label.{name}": value for name, value in network.label.trainable_state_dict().items()}
