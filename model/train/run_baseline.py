"""``vidlex train fit --method``: a baseline from a CLIP to a checkpoint that is evaluated and served like ours."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlex.model.checkpoint import CheckpointConfig, digest_llm, save_checkpoint
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.train.baseline import BaselineTask, evaluate_baseline
from vidlex.model.train.export import fit_scorer, named_clip, stored_clip, with_absolute_llm
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console, run
from vidlex.model.train.loop.run_log import write_metrics
from vidlex.model.train.setup import create_baseline, open_checked, prepare_source, set_up, with_precision
from vidlex.model.train.source import SourceOpener, SourceSetup
from vidlex.model.train.validation import metrics_by_kind

TRAINED_METHODS: tuple[Method, ...] = ("coop", "dualcoop", "vificlip")


def fit_baseline(
    config: FitConfig,
    video: VideoEncoderConfig,
    label: LabelEncoderConfig,
    baseline: BaselineConfig,
    *,
    method: Method,
    clip_name: str,
    open_source: SourceOpener,
    out: Path,
    checkpoint_id: str,
    store_clip: bool,
    half: bool,
) -> Path:
    """Train if the method has trainable parameters, calibrate, and write ``out/checkpoint`` and ``out/metrics.json``.

    DualCoOp over frames has no label vectors, so it gets no checkpoint.
    """
    video = replace(video, num_branch_blocks=0)
    backbone = set_up(config, video, clip_name=clip_name)
    clip, clip_digest = backbone.clip, backbone.clip.digest
    trains_towers = method == "vificlip"
    network, llm_folder = create_baseline(backbone, method, baseline, label, config)
    out.mkdir(parents=True, exist_ok=True)
    config = with_precision(config, network, network.frame_features, backbone, out)
    setup = SourceSetup(config, network.video, clip.source.geometry, clip_digest, trains_towers, out)
    with closing(open_checked(open_source, setup)) as source:
        description: dict[str, Any] = {
            **config.settings(), "video": asdict(video), "baseline": asdict(baseline), "clip": clip_name,
            "clip_digest": clip_digest, "data": dict(source.settings()),
        }  # fmt: skip
        prepare_source(source, out, description)
        if method in TRAINED_METHODS:
            num_warmup_steps = min(100, config.num_joint_steps // 10 + 1)
            loop = config.loop(
                config.num_joint_steps, num_warmup_steps=num_warmup_steps, evaluate_every=config.evaluate_every
            )
            run(BaselineTask(method, network, source, config, baseline), loop, out, description)
        folder = out / "checkpoint"
        if not backbone.processes.is_main:
            return folder
        validation = evaluate_baseline(network, source, config, config.num_validation_videos)
        write_metrics(out, method, metrics_by_kind(*validation, source.validation_labels, source.labels.kinds))
        if method == "dualcoop" and baseline.places == "frames":
            console.print(f"wrote {out / 'metrics.json'}; no checkpoint: with places over frames a label has no vector")
            return out
    scorer, default_threshold = fit_scorer(network.log_scale, network.bias, validation)
    clip_source = named_clip(clip)
    tensors: dict[str, Tensor] = {
        f"label.{name}": value for name, value in network.label.trainable_state_dict().items()
    }
    if store_clip or trains_towers:
        clip_source, stored = stored_clip(clip)
        tensors |= stored
    checkpoint = CheckpointConfig(
        id=checkpoint_id,
        clip=clip_source,
        video=video,
        label=with_absolute_llm(label),
        scorer=scorer,
        default_threshold=default_threshold,
        llm_digest=digest_llm(llm_folder) if llm_folder is not None else None,
        trained_labels=source.labels.names if method in TRAINED_METHODS else (),
        method=method,
        baseline=baseline,
    )
    save_checkpoint(folder, checkpoint, tensors, half=half)
    console.print(f"wrote {folder}")
    return folder
