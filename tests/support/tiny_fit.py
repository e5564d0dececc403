"""A tiny ``vidlex train fit``: drawn sprites, a tiny CLIP and a tiny LLM. Its processes can be killed at any step.

``python -m support.tiny_fit FOLDER OUT NUM_PROCESSES`` runs it in several processes of torchrun. With KILLS instead, a
JSON list of ``[place, stage, step]``, it runs once for each in a process that is killed there with SIGKILL, then once
without a kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from support.art import tiny_sheet
from support.tiny import write_llm
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.world import World
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import emoji_opener
from vidlex.model.sources.emoji_pool import pool_opener
from vidlex.model.train.export import write_open_clip_folder
from vidlex.model.train.fit import JointTask, LabelTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import curves, state
from vidlex.model.train.loop.processes import MicroBatch
from vidlex.model.train.loop.run_log import StageLog
from vidlex.model.train.run_fit import main

MODEL_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CONFIG = FitConfig(
    num_joint_steps=7, batch_size=4, num_step_labels=16, num_cached_videos=16, num_validation_videos=16,
    num_prefix_steps=3, num_prefix_labels=4, num_label_steps=4, bf16=False, evaluate_every=2, save_every_seconds=0.0,
    ema_decay=0.7, patience=50, num_accumulation_steps=2,
)  # fmt: skip
STEPS = {"joint": CONFIG.num_joint_steps, "prefix": CONFIG.num_prefix_steps, "label": CONFIG.num_label_steps}
PLACES = ("before", "logged", "saving")
Run = Callable[[Path, Path], Any]


def write_backbones(folder: Path) -> Path:
    torch.manual_seed(0)
    write_open_clip_folder(open_clip.CLIP(**MODEL_CFG).eval(), MODEL_CFG, MEAN, STD, folder / "clip")
    write_llm(folder / "llm")
    return folder


def fit(
    folder: Path,
    out: Path,
    *,
    method: Method = "ours",
    emoji: EmojiConfig = EmojiConfig(),
    label_options: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Path:
    """``changes`` override fields of ``CONFIG``."""
    label = LabelEncoderConfig(
        llm=str(folder / "llm"), num_prefixes=2, num_attributes=1, tokens_per_attribute=2, prompting_width=16,
        prompting_heads=2, **label_options,
    )  # fmt: skip
    return main(
        replace(CONFIG, **changes), VideoEncoderConfig(num_branch_blocks=2, num_frames=3), label,
        BaselineConfig(num_context=4), method=method, clip_name=f"local-dir:{folder / 'clip'}", out=out,
        open_source=(pool_opener if emoji.num_pool_videos else emoji_opener)(emoji, out, sheet=tiny_sheet()),
        checkpoint_id="tiny", half=False,
    )  # fmt: skip


def die_at(place: str, stage: str, step: int) -> None:
    """Kill the process at a step: before the batch is computed, after the line is in the log, or before the new state
    replaces the old one.
    """

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "before":
        for task in (JointTask, LabelTask):
            original = task.micro_batch_loss

            def micro_batch_loss(self: Any, at: int, micro_batch: MicroBatch, original: Any = original) -> Any:
                if (self.name, at) == (stage, step - 1) and micro_batch.local_index == micro_batch.num_local - 1:
                    die()
                return original(self, at, micro_batch)

            task.micro_batch_loss = micro_batch_loss  # type: ignore[method-assign]
    elif place == "logged":
        add = StageLog.add

        def add_and_die(self: StageLog, at: int, values: Any) -> None:
            add(self, at, values)
            if (self.stage, at) == (stage, step):
                die()

        StageLog.add = add_and_die  # type: ignore[method-assign]
    elif place == "saving":
        save_tensors = state.save_tensors

        def save_and_die(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
            save_tensors(tensors, path, metadata=metadata)
            if path.name.startswith(stage) and json.loads(metadata["progress"])["step"] == step:
                die()

        state.save_tensors = save_and_die
    else:
        raise ValueError(place)


def start(folder: Path, out: Path, kill: tuple[str, str, int] | None = None, *, run: Run | None = None) -> int:
    """Fork a process that runs ``run`` (default: ``fit``), with the imports of this one. Returns its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        if kill is not None:
            die_at(*kill)
        (run or fit)(folder, out)
        status = 0
    finally:
        os._exit(status)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def prepare_to_fork() -> None:
    """Draw the backgrounds, which the processes then share, and disable the plots of the stages."""
    torch.set_num_threads(1)
    for split in ("train", "val"):
        World(Path(), split=split, sheet=tiny_sheet())
    curves.plot_stage = lambda out, stage: None


def run_processes(folder: Path, out: Path, num_processes: int, *, run: Run | None = None) -> None:
    """In forked workers of torchrun's agent."""
    prepare_to_fork()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=num_processes, run_id="tiny", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="fork",
    )  # fmt: skip
    elastic_launch(config, run or fit)(folder, out)


def kill_and_restart(
    folder: Path, out: Path, kills: list[tuple[str, str, int]], *, run: Run | None = None
) -> list[int]:
    """Exit codes: of the uninterrupted run in ``out/unbroken``, then of those in ``out/broken``."""
    prepare_to_fork()
    unbroken = start(folder, out / "unbroken", run=run)
    broken = [exit_code(start(folder, out / "broken", kill, run=run)) for kill in (*kills, None)]
    return [exit_code(unbroken), *broken]


def main_of_process(run: Run) -> None:
    folder, out, argument = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    if isinstance(argument, int):
        run_processes(folder, out, argument, run=run)
    else:
        print(json.dumps(kill_and_restart(folder, out, argument, run=run)))


if __name__ == "__main__":
    main_of_process(fit)
