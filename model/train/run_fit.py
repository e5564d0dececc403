"""``vidlex train fit``: from a CLIP and an LLM to a checkpoint that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import World
from vidlex.model.factory import create_clip, create_label_encoder
from vidlex.model.train.clip_regulariser import Held, hold
from vidlex.model.train.export import write_checkpoint
from vidlex.model.train.fit import VALIDATION_SEED, JointTask, LabelTask, choose_alpha, figures_by_kind, video_features
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import console, run
from vidlex.model.train.precision import choose_bf16
from vidlex.model.train.processes import processes_of
from vidlex.model.train.run_baseline import fit_baseline
from vidlex.model.train.run_log import write_metrics
from vidlex.model.train.task import OpenVocabularyNetwork
from vidlex.model.video.encoder import VideoEncoder

CACHED_SEED = 700_000
"""Of the training videos whose features are kept."""


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
    """Train all stages, resuming what is in ``out``, and write ``out/checkpoint``. Returns that folder.

    ``clip_name`` is any open_clip model (``local-dir:<folder>``, ``NAME/PRETRAINED``). ``store_clip`` puts its
    weights into the checkpoint; otherwise the checkpoint names it and keeps a digest. ``half`` stores float16.
    ``method`` other than "ours": what the paper compares with, by the same loop, data and steps, on the frame mean.
    ``sheet``: sprites other than the downloaded ones.
    """
    if method != "ours":
        return fit_baseline(
            config, video, label, baseline, method=method, clip_name=clip_name, out=out, art_cache=art_cache,
            checkpoint_id=checkpoint_id, store_clip=store_clip, half=half, sheet=sheet,
        )  # fmt: skip
    processes = processes_of(torch.device(config.device).type)
    console.quiet = not processes.is_main
    torch.manual_seed(config.seed)
    clip = create_clip(clip_name)
    video_encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
    label_encoder, llm_folder = create_label_encoder(replace(label, name_trust=0.0), clip)
    network = OpenVocabularyNetwork(video_encoder, label_encoder).to(config.device)
    canvas = clip.source.geometry.image_size
    train = World(art_cache, canvas=canvas, num_more_pairs=config.num_more_pairs, sheet=sheet, device=config.device)
    worlds: Mapping[str, World] = {
        "train": train,
        "val": World(art_cache, canvas=canvas, split="val", sheet=train.sheet, device=config.device),
    }
    names, num_judged = list(train.labels), len(worlds["val"].labels)
    frames = torch.zeros(2, video.num_frames, 3, canvas, canvas, dtype=torch.uint8)
    bf16 = choose_bf16(config.bf16, network, lambda: network.video_features(frames, 0.5), config.device, out)
    config = replace(config, bf16=bf16)
    description: dict[str, Any] = {
        **config.settings(),
        "video": asdict(video),
        "label": label.to_dict(),
        "clip": clip_name,
        "clip_digest": clip.digest,
    }

    console.print(f"LLM states of {len(names)} labels under the starting prefixes")
    states = label_encoder.cache_states(names)
    label_encoder.fit_statistics(states)
    held = _held(network, train, config)
    loop = config.loop(config.num_joint_steps, num_warmup_steps=100, evaluate_every=config.evaluate_every)
    run(JointTask(network, worlds, states, config, held), loop, out, description)
    choose_alpha(network, worlds["val"], states[:num_judged], config)

    console.print(f"features of {config.num_cached_videos} training videos")
    cached = video_features(network, train, config.num_cached_videos, config, seed=CACHED_SEED, alpha=None)
    loop = replace(config, bf16=False).loop(config.num_prefix_steps, num_warmup_steps=5, evaluate_every=10**9)
    task = LabelTask("prefix", network, cached=cached, world=train, states=None, config=config, held=held)
    run(task, loop, out, description)
    states = label_encoder.cache_states(names)
    validation = video_features(
        network, worlds["val"], config.num_validation_videos, config, seed=VALIDATION_SEED, alpha=None
    )
    if held is not None:
        kinds = train.kinds()
        held = held.settling([kinds[name] for name in names])
    task = LabelTask(
        "label", network, cached=cached, world=train, states=states, config=config, validation=validation, held=held
    )
    loop = config.loop(config.num_label_steps, num_warmup_steps=20, evaluate_every=max(1, config.num_label_steps // 10))
    run(task, loop, out, description)
    if not processes.is_main:
        return out / "checkpoint"

    if label.name_trust:
        network.trust_names(label.name_trust)
        validation = video_features(
            network, worlds["val"], config.num_validation_videos, config, seed=VALIDATION_SEED, alpha=None
        )
    with torch.no_grad():
        labels = label_encoder.forward_from_states(names[:num_judged], states[:num_judged].to(config.device))
        logits, targets = network.logits(validation[0], labels).cpu(), validation[1]
    folder = out / "checkpoint"
    write_checkpoint(
        folder, network, clip, llm_folder, checkpoint_id=checkpoint_id, trained_labels=names,
        validation=(logits, targets), store_clip=store_clip, half=half,
    )  # fmt: skip
    write_metrics(out, method, figures_by_kind(logits, targets, worlds["val"]))
    console.print(f"wrote {folder}")
    return folder


def _held(network: OpenVocabularyNetwork, world: World, config: FitConfig) -> Held | None:
    """What CLIP knows of the labels, where the training is to hold it. Before training: the branch adds nothing yet."""
    if not (config.video_hold or config.label_hold):
        return None
    console.print(f"what CLIP knows of the labels, on {config.num_cached_videos} training videos")
    features, targets = video_features(network, world, config.num_cached_videos, config, seed=CACHED_SEED, alpha=None)
    return hold(network.label.clip_text, world.labels, world.kinds(), features, targets)
