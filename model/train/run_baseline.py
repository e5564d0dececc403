"""``vidlex train fit --method``: a baseline from a CLIP to a checkpoint that is evaluated and served like ours."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlex.model.checkpoint import CheckpointConfig, digest_llm, save_checkpoint
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.factory import create_baseline_labels
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask, evaluate_baseline
from vidlex.model.train.export import fit_scorer, stored_clip
from vidlex.model.train.fit import metrics_by_kind
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console, run
from vidlex.model.train.loop.run_log import write_metrics
from vidlex.model.train.setup import set_up, with_precision

TRAINED_METHODS: tuple[Method, ...] = ("coop", "dualcoop", "vificlip")


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
    """Train if the method has trainable parameters, calibrate, and write ``out/checkpoint`` and ``out/metrics.json``.

    DualCoOp over frames has no label vectors, so it gets no checkpoint.
    """
    video = replace(video, num_branch_blocks=0)
    backbone = set_up(config, video, clip_name=clip_name, art_cache=art_cache, sheet=sheet)
    clip, worlds = backbone.clip, backbone.worlds
    clip_digest = clip.digest
    labels, llm_folder = create_baseline_labels(method, baseline, label, clip)
    trains_towers = method == "vificlip"
    network = BaselineNetwork(
        clip.model, backbone.encoder, labels, places=baseline.places, train_towers=trains_towers
    ).to(config.device)
    out.mkdir(parents=True, exist_ok=True)
    config = with_precision(config, network, network.frame_features, backbone, out)
    if method in TRAINED_METHODS:
        description: dict[str, Any] = {
            **config.settings(), "video": asdict(video), "baseline": asdict(baseline), "clip": clip_name,
            "clip_digest": clip_digest,
        }  # fmt: skip
        num_warmup_steps = min(100, config.num_joint_steps // 10 + 1)
        loop = config.loop(
            config.num_joint_steps, num_warmup_steps=num_warmup_steps, evaluate_every=config.evaluate_every
        )
        run(BaselineTask(method, network, worlds, config, baseline), loop, out, description)
    folder = out / "checkpoint"
    if not backbone.processes.is_main:
        return folder
    validation = evaluate_baseline(network, worlds["val"], config, config.num_validation_videos)
    write_metrics(out, method, metrics_by_kind(*validation, worlds["val"]))
    if method == "dualcoop" and baseline.places == "frames":
        console.print(f"wrote {out / 'metrics.json'}; no checkpoint: with places over frames a label has no vector")
        return out
    scorer, default_threshold = fit_scorer(network.log_scale, network.bias, validation)
    source = replace(clip.source, digest=clip_digest)
    tensors: dict[str, Tensor] = {f"label.{name}": value for name, value in labels.trainable_state_dict().items()}
    if store_clip or trains_towers:
        source, stored = stored_clip(clip)
        tensors |= stored
    checkpoint = CheckpointConfig(
        id=checkpoint_id,
        clip=source,
        video=video,
        label=label,
        scorer=scorer,
        default_threshold=default_threshold,
        llm_digest=digest_llm(llm_folder) if llm_folder is not None else None,
        trained_labels=tuple(worlds["train"].labels) if method in TRAINED_METHODS else (),
        method=method,
        baseline=baseline,
    )
    save_checkpoint(folder, checkpoint, tensors, half=half)
    console.print(f"wrote {folder}")
    return folder
