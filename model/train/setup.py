from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import World
from vidlex.model.factory import Clip, create_clip
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.precision import choose_bf16
from vidlex.model.train.loop.processes import ProcessGroup, process_group
from vidlex.model.video.encoder import VideoEncoder


@dataclass(frozen=True, eq=False)
class Backbone:
    processes: ProcessGroup
    clip: Clip
    encoder: VideoEncoder  # on CLIP's image tower, untrained
    worlds: Mapping[str, World]  # "train" and "val"


def set_up(
    config: FitConfig, video: VideoEncoderConfig, *, clip_name: str, art_cache: Path, sheet: SpriteSheet | None
) -> Backbone:
    # Joins the processes of the run.
    processes = process_group(torch.device(config.device).type)
    console.quiet = not processes.is_main
    torch.manual_seed(config.seed)
    clip = create_clip(clip_name)
    encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
    canvas = clip.source.geometry.image_size
    train = World(art_cache, canvas=canvas, num_more_pairs=config.num_more_pairs, sheet=sheet, device=config.device)
    val = World(art_cache, canvas=canvas, split="val", sheet=train.sheet, device=config.device)
    return Backbone(processes, clip, encoder, {"train": train, "val": val})


def with_precision(
    config: FitConfig, network: nn.Module, features: Callable[[Tensor], Tensor], backbone: Backbone, out: Path
) -> FitConfig:
    """Decides ``bf16``. ``features`` takes frames [B, T, 3, H, W] uint8."""
    canvas = backbone.clip.source.geometry.image_size
    frames = torch.zeros(2, backbone.encoder.config.num_frames, 3, canvas, canvas, dtype=torch.uint8)
    bf16 = choose_bf16(config.bf16, network, lambda: features(frames), config.device, out)
    return replace(config, bf16=bf16)
