"""``vidlex train fit`` in a moment: drawn sprites, a tiny CLIP and a tiny LLM; to be killed and to be started twice.

As a program: ``python -m support.tiny_fit FOLDER OUT [KILLS]``. With KILLS, a JSON list of ``[place, stage, step]``, it
first runs once for each of them in a process that is killed (SIGKILL) there, then without a kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from support.art import tiny_sheet
from support.tiny import write_llm
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.train import state
from vidlex.model.train.export import write_open_clip_folder
from vidlex.model.train.fit import JointTask, LabelTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.run_fit import main
from vidlex.model.train.run_log import Log

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


def write_backbones(folder: Path) -> Path:
    torch.manual_seed(0)
    write_open_clip_folder(open_clip.CLIP(**MODEL_CFG).eval(), MODEL_CFG, MEAN, STD, folder / "clip")
    write_llm(folder / "llm")
    return folder


def fit(folder: Path, out: Path, *, method: Method = "ours", **changes: Any) -> Path:
    """``changes`` are of ``CONFIG``."""
    label = LabelEncoderConfig(
        llm=str(folder / "llm"), num_prefixes=2, num_attributes=1, tokens_per_attribute=2, prompting_width=16,
        prompting_heads=2,
    )  # fmt: skip
    return main(
        replace(CONFIG, **changes), VideoEncoderConfig(num_branch_blocks=2, num_frames=3), label,
        BaselineConfig(num_context=4), method=method, clip_name=f"local-dir:{folder / 'clip'}", out=out, art_cache=out,
        checkpoint_id="tiny", half=False, sheet=tiny_sheet(),
    )  # fmt: skip


def die_at(place: str, stage: str, step: int) -> None:
    """From now on the process ends by SIGKILL when ``stage`` is at ``step``: before its batch is computed, when its
    line is in the log, or when its state is written but has not yet taken the old one's place."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "before":
        for task in (JointTask, LabelTask):
            part_of = task.training_part

            def training_part(self: Any, at: int, part: Any, part_of: Any = part_of) -> Any:
                if (self.name, at) == (stage, step - 1) and part.micro == part.num_micros - 1:
                    die()
                return part_of(self, at, part)

            task.training_part = training_part  # type: ignore[method-assign]
    elif place == "logged":
        add = Log.add

        def add_and_die(self: Log, at: int, values: Any) -> None:
            add(self, at, values)
            if (self.stage, at) == (stage, step):
                die()

        Log.add = add_and_die  # type: ignore[method-assign]
    elif place == "saving":
        save_file = state.save_file

        def save_and_die(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
            save_file(tensors, path, metadata=metadata)
            if path.name.startswith(stage) and json.loads(metadata["progress"])["step"] == step:
                die()

        state.save_file = save_and_die
    else:
        raise ValueError(place)


def start(folder: Path, out: Path, kill: tuple[str, str, int] | None = None) -> int:
    """A run in a process of its own, which shares this one's imports. Returns its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        if kill is not None:
            die_at(*kill)
        fit(folder, out)
        status = 0
    finally:
        os._exit(status)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_and_restart(folder: Path, out: Path, kills: list[tuple[str, str, int]]) -> list[int]:
    """How each run ended: the unbroken one in ``out/unbroken``, then those in ``out/broken``."""
    unbroken = start(folder, out / "unbroken")
    broken = [ended(start(folder, out / "broken", kill)) for kill in (*kills, None)]
    return [ended(unbroken), *broken]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        print(json.dumps(kill_and_restart(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        fit(Path(sys.argv[1]), Path(sys.argv[2]))
