"""Training on a GPU: the same videos as on the CPU, and every kind of row of the suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_suite import TINY

from support.art import tiny_sheet
from support.tiny_fit import write_backbones
from vidlex.model.emoji.world import World
from vidlex.model.suite.rows import BASELINES
from vidlex.model.suite.suite import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_gpu_and_cpu_render_the_same_videos(tmp_path: Path) -> None:
    on_cpu = World(tmp_path, canvas=48, sheet=tiny_sheet(), split="val")
    on_gpu = World(tmp_path, canvas=48, sheet=tiny_sheet(), split="val", device="cuda")
    expected, drawn = (world.videos(8, 4, world.generator(3)) for world in (on_cpu, on_gpu))
    assert drawn.frames.device.type == "cuda" and torch.equal(expected.targets, drawn.targets)
    assert (expected.frames.float() - drawn.frames.cpu().float()).abs().max() <= 2


@pytest.mark.timeout(600)
def test_suite_runs_on_gpu(tmp_path: Path) -> None:
    folder = write_backbones(tmp_path)
    config = replace(TINY, llm=str(folder / "llm"), device="cuda", num_seeds=1, held=True, num_settling_steps=2)
    out = tmp_path / "suite"
    main(config, clip_name=f"local-dir:{folder / 'clip'}", out=out, art_cache=tmp_path, sheet=tiny_sheet())
    rows = {path.stem: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}
    assert {f"main_{name}_seed0" for name in ("ours", "settled", *BASELINES)} <= set(rows)
    assert "video-side_ours_3-branch-blocks_seed0" in rows and "label-side_ours_without-the-LLM_seed0" in rows
    assert rows["main_ours_seed0"]["columns"]["seen"]["all"]["micro_aupr"] > 0
