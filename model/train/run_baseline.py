"""A baseline from a CLIP to a checkpoint that is measured and served as ours is."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlex.model.checkpoint import CheckpointConfig, ClipSource, digest_llm, save_checkpoint
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import World
from vidlex.model.eval.calibration import fit_platt
from vidlex.model.eval.metrics import peak_f1
from vidlex.model.factory import create_baseline_labels, create_clip
from vidlex.model.scoring import Scorer
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask, evaluate_baseline
from vidlex.model.train.fit import figures_by_kind
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import console, run
from vidlex.model.train.precision import choose_bf16
from vidlex.model.train.processes import processes_of
from vidlex.model.train.run_log import write_metrics
from vidlex.model.video.encoder import VideoEncoder

TRAINED: tuple[Method, ...] = ("coop", "dualcoop", "vificlip")


def fit_baseline(
    config: FitConfig,
    video: VideoEncoderConfig,
    label: LabelEncoderConfig,
    baseline: BaselineConfig,
    *,
    method: Method,
    clip_name: str,
    out: Path,
    art_cache: Path,
    checkpoint_id: str,
    store_clip: bool,
    half: bool,
    sheet: SpriteSheet | None,
) -> Path:
    """Train (what has something to train), calibrate on validation videos, write ``out/checkpoint`` and
    ``out/metrics.json``. DualCoOp over frames has no label vectors: it gets its metrics, and no checkpoint.
    """
    processes = processes_of(torch.device(config.device).type)
    console.quiet = not processes.is_main
    torch.manual_seed(config.seed)
    clip = create_clip(clip_name)
    clip_digest = clip.digest
    video = replace(video, num_branch_blocks=0)
    encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
    labels, llm_folder = create_baseline_labels(method, baseline, label, clip)
    trains_towers = method == "vificlip"
    network = BaselineNetwork(clip.model, encoder, labels, places=baseline.places, train_towers=trains_towers).to(
        config.device
    )
    canvas = clip.source.geometry.image_size
    train = World(art_cache, canvas=canvas, num_more_pairs=config.num_more_pairs, sheet=sheet, device=config.device)
    val = World(art_cache, canvas=canvas, split="val", sheet=train.sheet, device=config.device)
    worlds = {"train": train, "val": val}
    out.mkdir(parents=True, exist_ok=True)
    frames = torch.zeros(2, video.num_frames, 3, canvas, canvas, dtype=torch.uint8)
    bf16 = choose_bf16(config.bf16, network, lambda: network.frame_features(frames), config.device, out)
    config = replace(config, bf16=bf16)
    if method in TRAINED:
        description: dict[str, Any] = {
            **config.settings(), "video": asdict(video), "baseline": asdict(baseline), "clip": clip_name,
            "clip_digest": clip_digest,
        }  # fmt: skip
        num_warmup_steps = min(100, config.num_joint_steps // 10 + 1)
        loop = config.loop(
            config.num_joint_steps, num_warmup_steps=num_warmup_steps, evaluate_every=config.evaluate_every
        )
        run(BaselineTask(method, network, worlds, config, baseline), loop, out, description)
    if not processes.is_main:
        return out / "checkpoint"
    logits, targets = evaluate_baseline(network, worlds["val"], config, config.num_validation_videos)
    write_metrics(out, method, figures_by_kind(logits, targets, worlds["val"]))
    if method == "dualcoop" and baseline.places == "frames":
        console.print(f"wrote {out / 'metrics.json'}; with places over frames a label is no vector: no checkpoint")
        return out
    calibration = fit_platt(logits.numpy(), targets.numpy())
    _, best_logit = peak_f1(logits.numpy(), targets.numpy())
    source = replace(clip.source, digest=clip_digest)
    tensors: dict[str, Tensor] = {f"label.{name}": value for name, value in labels.trainable_state_dict().items()}
    if store_clip or trains_towers:
        source = ClipSource("stored", source.mean, source.std, source.geometry, clip.model_cfg)
        tensors |= {f"clip.{name}": value for name, value in clip.model.state_dict().items()}
    checkpoint = CheckpointConfig(
        id=checkpoint_id,
        clip=source,
        video=video,
        label=label,
        scorer=Scorer(network.log_scale.exp().item(), network.bias.item(), calibration),
        default_threshold=round(float(calibration.probability(best_logit)), 4),
        llm_digest=digest_llm(llm_folder) if llm_folder is not None else None,
        trained_labels=tuple(train.labels) if method in TRAINED else (),
        method=method,
        baseline=baseline,
    )
    save_checkpoint(out / "checkpoint", checkpoint, tensors, half=half)
    console.print(f"wrote {out / 'checkpoint'}")
    return out / "checkpoint"
