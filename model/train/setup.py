from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.factory import Clip, create_baseline_labels, create_clip, create_label_encoder
from vidlex.model.train.baseline import BaselineNetwork
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.precision import choose_bf16
from vidlex.model.train.loop.processes import ProcessGroup, process_group
from vidlex.model.train.loop.run_log import RunFile
from vidlex.model.train.loop.state import check_same_settings
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.source import SourceOpener, SourceSetup, TrainingSource
from vidlex.model.train.validation import check_validation
from vidlex.model.video.encoder import VideoEncoder


@dataclass(frozen=True, eq=False)
class Backbone:
    processes: ProcessGroup
    clip: Clip
    encoder: VideoEncoder  # on CLIP's image tower, untrained


def set_up(config: FitConfig, video: VideoEncoderConfig, *, clip_name: str) -> Backbone:
    # Joins the processes of the run.
    processes = process_group(torch.device(config.device).type)
    console.quiet = not processes.is_main
    torch.manual_seed(config.seed)
    clip = create_clip(clip_name)
    encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
    return Backbone(processes, clip, encoder.to(config.device))


def create_network(
    backbone: Backbone, label: LabelEncoderConfig, config: FitConfig
) -> tuple[OpenVocabularyNetwork, Path]:  # and the LLM's folder
    encoder, llm_folder = create_label_encoder(label, backbone.clip, config.device)
    return OpenVocabularyNetwork(backbone.encoder, encoder).to(config.device), llm_folder


def create_baseline(
    backbone: Backbone, method: Method, baseline: BaselineConfig, label: LabelEncoderConfig, config: FitConfig
) -> tuple[BaselineNetwork, Path | None]:  # and the LLM's folder
    labels, llm_folder = create_baseline_labels(method, baseline, label, backbone.clip)
    network = BaselineNetwork(
        backbone.clip.model, backbone.encoder, labels, places=baseline.places, train_towers=method == "vificlip"
    )
    return network.to(config.device), llm_folder


def with_precision(
    config: FitConfig, network: nn.Module, features: Callable[[Tensor], Tensor], backbone: Backbone, out: Path
) -> FitConfig:
    """Decides ``bf16``. ``features`` takes frames [B, T, 3, H, W] uint8."""
    canvas = backbone.clip.source.geometry.image_size
    frames = torch.zeros(2, backbone.encoder.config.num_frames, 3, canvas, canvas, dtype=torch.uint8)
    bf16 = choose_bf16(config.bf16, network, lambda: features(frames), config.device, out)
    return replace(config, bf16=bf16)


def open_checked(open_source: SourceOpener, setup: SourceSetup) -> TrainingSource:
    """Raises ValueError if the validation videos do not suffice: before the first step rather than after the last."""
    source = open_source(setup)
    try:
        check_validation(source.validation_targets(setup.config.num_validation_videos))
    except BaseException:
        source.close()
        raise
    return source


def prepare_source(source: TrainingSource, out: Path, description: Mapping[str, Any]) -> None:
    """Last before the first stage: it may take hours. Raises ValueError if ``out`` has a run with other settings."""
    recorded = RunFile(out).data.get("settings")
    if recorded is not None:
        check_same_settings(out, recorded, json.loads(json.dumps(description)))
    source.prepare()
