"""A tiny ``vidlex train fit`` on a manifest of generated videos, which can be killed as ``tiny_fit`` describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_fit import main_of_process
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.sources.open import source_opener
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.run_fit import main

LEARNING_RATES = {"new_learning_rate": 1e-2, "copied_learning_rate": 5e-3, "label_learning_rate": 5e-3}
SHORT = {"num_joint_steps": 8, "num_prefix_steps": 3, "num_label_steps": 4, "evaluate_every": 3}
SHORT_STEPS = {"joint": 8, "prefix": 3, "label": 4}


def fit_manifest(folder: Path, out: Path, data: DataConfig, *, method: Method = "ours", **changes: Any) -> Path:
    """``folder``: of ``tiny_fit.write_backbones``. ``changes`` override fields of the configuration."""
    fields = {"batch_size": 8, "num_prefix_labels": 4, "bf16": False, "save_every_seconds": 0.0, **LEARNING_RATES}
    label = LabelEncoderConfig(
        llm=str(folder / "llm"), num_prefixes=2, tokens_per_attribute=2, prompting_width=16, prompting_heads=2
    )
    return main(
        FitConfig(**{**fields, **changes}), VideoEncoderConfig(num_branch_blocks=2, num_frames=4), label,
        BaselineConfig(num_context=4), method=method, clip_name=f"local-dir:{folder / 'clip'}",
        open_source=source_opener(data, EmojiConfig(), out), out=out, checkpoint_id="tiny", half=False,
    )  # fmt: skip


def fit_short(folder: Path, out: Path) -> Path:
    data = DataConfig(train=(str(folder / "data" / "manifest.jsonl"),), num_decode_workers=1)
    return fit_manifest(folder, out, data, num_accumulation_steps=2, **SHORT)


if __name__ == "__main__":
    main_of_process(fit_short)
