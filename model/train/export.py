from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.checkpoint import (
    CheckpointConfig,
    ClipSource,
    check_fits,
    digest_llm,
    load_checkpoint,
    save_checkpoint,
)
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.eval.calibration import fit_platt
from vidlex.model.eval.metrics import peak_f1
from vidlex.model.factory import Clip
from vidlex.model.files import save_tensors
from vidlex.model.scoring import Scorer
from vidlex.model.train.losses import POSITIVE, UNKNOWN
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.weights.llm import DEFAULT_LLM


def write_open_clip_folder(
    clip: nn.Module, model_cfg: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], folder: Path
) -> Path:
    """Write a folder for ``local-dir:<folder>`` of open_clip, with "squash" preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    size = model_cfg["vision_cfg"]["image_size"]
    preprocess = {"size": size, "mean": list(mean), "std": list(std), "interpolation": "bilinear"}
    config = {"model_cfg": dict(model_cfg), "preprocess_cfg": {**preprocess, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()}
    save_tensors(tensors, folder / "open_clip_model.safetensors")
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
    """``validation``: logits and int8 targets [n, V] of videos that training did not see, for calibration and
    threshold. ``store_clip`` includes CLIP's weights; otherwise the checkpoint has their name and digest.
    ``half`` stores float16.
    """
    scorer, default_threshold = fit_scorer(network.log_scale, network.bias, validation)
    source = named_clip(clip)
    tensors = _trainable_tensors(network)
    if store_clip:
        source, stored = stored_clip(clip)
        tensors |= stored
    config = CheckpointConfig(
        id=checkpoint_id,
        clip=source,
        video=network.video.config,
        label=with_absolute_llm(network.label.config),
        scorer=scorer,
        default_threshold=default_threshold,
        llm_digest=digest_llm(llm_folder),
        trained_labels=tuple(trained_labels),
    )
    save_checkpoint(folder, config, tensors, half=half)


def fit_scorer(log_scale: Tensor, bias: Tensor, validation: tuple[Tensor, Tensor]) -> tuple[Scorer, float]:
    """Calibration and threshold are fitted on the known pairs of ``validation``: logits and int8 targets [n, V]."""
    is_known = validation[1] != UNKNOWN
    logits, targets = validation[0][is_known].numpy(), (validation[1][is_known] == POSITIVE).numpy()
    calibration = fit_platt(logits, targets)
    _, best_logit = peak_f1(logits, targets)
    threshold = round(float(calibration.probability(best_logit)), 4)
    return Scorer(log_scale.exp().item(), bias.item(), calibration), threshold


def named_clip(clip: Clip) -> ClipSource:
    """A CLIP that the checkpoint refers to. A folder is absolute: the checkpoint may be served from anywhere."""
    kind, _, folder = clip.source.source.partition(":")
    name = f"{kind}:{Path(folder).expanduser().resolve()}" if kind == "local-dir" else clip.source.source
    return replace(clip.source, source=name, digest=clip.digest)


def with_absolute_llm(label: LabelEncoderConfig) -> LabelEncoderConfig:
    folder = Path(label.llm).expanduser()
    return replace(label, llm=str(folder.resolve())) if label.llm != DEFAULT_LLM and folder.is_dir() else label


def stored_clip(clip: Clip) -> tuple[ClipSource, dict[str, Tensor]]:
    source = ClipSource("stored", clip.source.mean, clip.source.std, clip.source.geometry, clip.model_cfg)
    return source, {f"clip.{name}": value for name, value in clip.model.state_dict().items()}


def restore_network(folder: Path, network: OpenVocabularyNetwork) -> None:
    """Raises CheckpointError if shapes differ."""
    config, tensors, _ = load_checkpoint(folder)
    trained = {name: value for name, value in tensors.items() if not name.startswith(("clip.", "calibration."))}
    targets = _trainable_tensors(network)
    check_fits(trained, targets)
    with torch.no_grad():
        for name, value in targets.items():
            value.copy_(trained[name])
        network.log_scale.fill_(math.log(config.scorer.logit_scale))
        network.bias.fill_(config.scorer.logit_bias)
    network.video.fold_alpha = 1.0
    network.set_label_config(replace(network.label.config, name_trust=config.label.name_trust))


def _trainable_tensors(network: OpenVocabularyNetwork) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        f"branch.{name}": value for name, value in network.video.trainable_parameters().items()
    }
    return tensors | {f"label.{name}": value for name, value in network.label.trainable_state_dict().items()}
