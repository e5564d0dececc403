"""``vidlex train fit``: from a CLIP and an LLM to a servable checkpoint."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import World
from vidlex.model.factory import create_label_encoder
from vidlex.model.train.clip_regulariser import ClipRegulariser
from vidlex.model.train.export import write_checkpoint
from vidlex.model.train.fit import (
    VALIDATION_SEED,
    JointTask,
    LabelTask,
    choose_alpha,
    compute_video_features,
    evaluate_network,
    metrics_by_kind,
)
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import NO_EVALUATION, console, run
from vidlex.model.train.loop.run_log import write_metrics
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.run_baseline import fit_baseline
from vidlex.model.train.setup import set_up, with_precision

CACHED_SEED = 700_000  # of the training videos whose features are cached


def main(
    config: FitConfig,
    video: VideoEncoderConfig,
    label: LabelEncoderConfig,
    baseline: BaselineConfig = BaselineConfig(),
    *,
    method: Method = "ours",
    clip_name: str,
    out: Path,
    art_cache: Path,
    checkpoint_id: str,
    store_clip: bool = True,
    half: bool = True,
    sheet: SpriteSheet | None = None,
) -> Path:
    """Train all stages, resuming from the state in ``out``, and write ``out/checkpoint``. Returns that folder.

    ``clip_name``: an open_clip model (``local-dir:<folder>`` or ``NAME/PRETRAINED``). ``store_clip`` includes its
    weights in the checkpoint; otherwise the checkpoint has its name and digest. ``half`` stores float16. A ``method``
    other than "ours" is a baseline. ``sheet`` replaces the downloaded sprites.
    """
    if method != "ours":
        return fit_baseline(
            config, video, label, baseline, method=method, clip_name=clip_name, out=out, art_cache=art_cache,
            checkpoint_id=checkpoint_id, store_clip=store_clip, half=half, sheet=sheet,
        )  # fmt: skip
    backbone = set_up(config, video, clip_name=clip_name, art_cache=art_cache, sheet=sheet)
    clip, train, val = backbone.clip, backbone.worlds["train"], backbone.worlds["val"]
    label_encoder, llm_folder = create_label_encoder(replace(label, name_trust=0.0), clip)
    network = OpenVocabularyNetwork(backbone.encoder, label_encoder).to(config.device)
    config = with_precision(config, network, lambda frames: network.video_features(frames, 0.5), backbone, out)
    description: dict[str, Any] = {
        **config.settings(),
        "video": asdict(video),
        "label": label.to_dict(),
        "clip": clip_name,
        "clip_digest": clip.digest,
    }

    console.print(f"LLM states of {len(train.labels)} labels for the initial prefixes")
    states = label_encoder.cache_states(list(train.labels))
    label_encoder.fit_statistics(states)
    regulariser = _fit_regulariser(network, train, config)
    loop = config.loop(config.num_joint_steps, num_warmup_steps=100, evaluate_every=config.evaluate_every)
    run(JointTask(network, backbone.worlds, states, config, regulariser), loop, out, description)
    num_videos = min(384, config.num_validation_videos)
    num_val_labels = len(val.labels)
    choose_alpha(
        network,
        lambda alpha: evaluate_network(
            network, val, states[:num_val_labels], config, num_videos=num_videos, alpha=alpha
        ),
    )

    console.print(f"features of {config.num_cached_videos} training videos")
    cached = compute_video_features(network, train, config.num_cached_videos, config, seed=CACHED_SEED, alpha=None)
    loop = replace(config, bf16=False).loop(config.num_prefix_steps, num_warmup_steps=5, evaluate_every=NO_EVALUATION)
    task = LabelTask("prefix", network, cached=cached, world=train, states=None, config=config, regulariser=regulariser)
    run(task, loop, out, description)
    final_states = label_encoder.cache_states(list(train.labels))
    validation = _validation_features(network, val, config)
    if regulariser is not None:
        kinds = train.kinds()
        regulariser = regulariser.for_label_stage([kinds[name] for name in train.labels])
    task = LabelTask(
        "label", network, cached=cached, world=train, states=final_states, config=config, validation=validation,
        regulariser=regulariser,
    )  # fmt: skip
    loop = config.loop(config.num_label_steps, num_warmup_steps=20, evaluate_every=max(1, config.num_label_steps // 10))
    run(task, loop, out, description)
    folder = out / "checkpoint"
    if not backbone.processes.is_main:
        return folder

    if label.name_trust:
        network.set_name_trust(label.name_trust)
        validation = _validation_features(network, val, config)
    with torch.no_grad():
        labels = label_encoder.forward_from_states(list(val.labels), final_states[:num_val_labels].to(config.device))
        logits, targets = network.logits(validation[0], labels).cpu(), validation[1]
    write_checkpoint(
        folder, network, clip, llm_folder, checkpoint_id=checkpoint_id, trained_labels=train.labels,
        validation=(logits, targets), store_clip=store_clip, half=half,
    )  # fmt: skip
    write_metrics(out, method, metrics_by_kind(logits, targets, val))
    console.print(f"wrote {folder}")
    return folder


def _validation_features(network: OpenVocabularyNetwork, world: World, config: FitConfig) -> tuple[Tensor, Tensor]:
    return compute_video_features(
        network, world, config.num_validation_videos, config, seed=VALIDATION_SEED, alpha=None
    )


def _fit_regulariser(network: OpenVocabularyNetwork, world: World, config: FitConfig) -> ClipRegulariser | None:
    """None if both weights are 0. Must run before training, while the branch still returns CLIP's frame means."""
    if not (config.video_hold or config.label_hold):
        return None
    console.print(f"CLIP's knowledge of the labels, on {config.num_cached_videos} training videos")
    features, targets = compute_video_features(
        network, world, config.num_cached_videos, config, seed=CACHED_SEED, alpha=None
    )
    return ClipRegulariser.fit(network.label.clip_text, world.labels, world.kinds(), features, targets)
