"""``vidlex train fit``: from a CLIP and an LLM to a servable checkpoint."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.text.label_memory import bound_label_memory
from vidlex.model.text.state_cache import cached_states
from vidlex.model.train.export import write_checkpoint
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.run_log import write_metrics
from vidlex.model.train.recipe import recipe
from vidlex.model.train.run_baseline import fit_baseline
from vidlex.model.train.setup import create_network, open_checked, prepare_source, set_up, with_precision
from vidlex.model.train.source import SourceOpener, SourceSetup
from vidlex.model.train.stages import StageRunner
from vidlex.model.train.validation import metrics_by_kind


def main(
    config: FitConfig,
    video: VideoEncoderConfig,
    label: LabelEncoderConfig,
    baseline: BaselineConfig = BaselineConfig(),
    *,
    method: Method = "ours",
    clip_name: str,
    open_source: SourceOpener,
    out: Path,
    checkpoint_id: str,
    store_clip: bool = True,
    half: bool = True,
) -> Path:
    """Train all stages, resuming from the state in ``out``, and write ``out/checkpoint``. Returns that folder.

    ``clip_name``: an open_clip model (``local-dir:<folder>`` or ``NAME/PRETRAINED``). ``store_clip`` includes its
    weights in the checkpoint; otherwise the checkpoint has its name and digest. ``half`` stores float16. A ``method``
    other than "ours" is a baseline.
    """
    if method != "ours":
        return fit_baseline(
            config, video, label, baseline, method=method, clip_name=clip_name, open_source=open_source, out=out,
            checkpoint_id=checkpoint_id, store_clip=store_clip, half=half,
        )  # fmt: skip
    stages = recipe(config)
    backbone = set_up(config, video, clip_name=clip_name)
    encoder, geometry = backbone.encoder, backbone.clip.source.geometry
    config = with_precision(config, encoder, lambda frames: encoder(frames, 0.5), backbone, out)
    setup = SourceSetup(config, encoder, geometry, backbone.clip.digest, trains_tower=False, out=out)
    with closing(open_checked(open_source, setup)) as source:
        clip, labels, is_main = backbone.clip, source.labels, backbone.processes.is_main
        network, llm_folder = create_network(backbone, replace(label, name_trust=0.0), config)
        label_encoder = network.label
        num_parts = config.num_accumulation_steps * backbone.processes.count
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.bf16)):
            bound_label_memory(
                label_encoder, labels.names, config.num_chunk_labels, report=console.print,
                num_labels=math.ceil((config.num_stage_labels or len(labels.names)) / num_parts),
            )  # fmt: skip
        description: dict[str, Any] = {
            **config.settings(),
            "video": asdict(video),
            "label": label.for_device(config.device).to_dict(),
            "clip": clip_name,
            "clip_digest": clip.digest,
            "data": dict(source.settings()),
        }

        runner = StageRunner(
            network, source, config, out=out, description=description,
            states_of=lambda names: cached_states(label_encoder, names, out / "states", report=console.print),
        )  # fmt: skip
        prepare_source(source, out, description)
        runner.run(stages)
        folder = out / "checkpoint"
        if not is_main:
            return folder
        network.set_label_config(replace(label_encoder.config, name_trust=label.name_trust))
        videos, targets, names, val_states = runner.validation()
        with torch.no_grad():
            texts = label_encoder.forward_from_states(list(names), val_states.to(config.device))
            logits = network.logits(videos, texts).cpu()
        write_checkpoint(
            folder, network, clip, llm_folder, checkpoint_id=checkpoint_id, trained_labels=labels.names,
            validation=(logits, targets), store_clip=store_clip, half=half,
        )  # fmt: skip
        write_metrics(out, "ours", metrics_by_kind(logits, targets, names, labels.kinds))
        console.print(f"wrote {folder}")
        return folder
