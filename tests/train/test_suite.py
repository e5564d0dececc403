"""The suite end to end at a tiny scale, its report, and how processes share the rows."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from support.art import tiny_sheet
from support.tiny import tiny_clip
from support.tiny_fit import write_backbones
from vidlex.model.checkpoint import CheckpointConfig, CheckpointError, load_checkpoint
from vidlex.model.config import VideoEncoderConfig
from vidlex.model.emoji.protocol import COLUMNS
from vidlex.model.emoji.world import World
from vidlex.model.factory import load_classifier
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import training_labels
from vidlex.model.sources.emoji_pool import PoolSource, build_pool, pool_targets
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.report import comparisons
from vidlex.model.suite.row import Row
from vidlex.model.suite.rows import BASELINES, ablations, longer_runs, without_llm
from vidlex.model.suite.settled_rows import SETTLED, settled_rows, train_settled
from vidlex.model.suite.suite import _ensure_row, main
from vidlex.model.video.encoder import Trunk, VideoEncoder

TINY = SuiteConfig(
    num_seeds=2, num_pool_videos=48, num_test_videos=24, num_validation_videos=24, num_frames=3, num_branch_blocks=2,
    num_prefixes=2, tokens_per_attribute=2, batch_size=8, num_step_labels=24, num_warmup_steps=2, num_joint_steps=3,
    num_prefix_steps=2, num_prefix_labels=3, num_baseline_steps=2, num_tuned_frames=2, num_tuned_videos=4,
    num_ablation_steps=2, num_label_ablation_steps=2, num_long_steps=4, num_more_pairs=6, num_settling_labels=20,
    num_settling_videos=40, num_settling_pairs=4, bf16=False,
)  # fmt: skip


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("without_curves")
def test_suite_trains_every_row_once_and_reports_it(tmp_path: Path) -> None:
    folder = write_backbones(tmp_path)
    config = replace(TINY, llm=str(folder / "llm"), num_settling_steps=2)
    out = tmp_path / "suite"
    arguments = {"clip_name": f"local-dir:{folder / 'clip'}", "out": out, "art_cache": tmp_path, "sheet": tiny_sheet()}
    report = main(config, **arguments, command="vidlex eval suite --tiny")  # type: ignore[arg-type]

    rows = {path.stem: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}
    trained = [name for name, method in BASELINES.items() if method.is_trained]
    expected = {f"main_{name}_seed{seed}" for name in ("ours", "settled", *trained) for seed in range(2)}
    assert expected <= set(rows)
    assert {f"main_{name}_seed0" for name in BASELINES} <= set(rows)
    assert sum(name.startswith("label-side_") for name in rows) == 10
    assert sum(name.startswith("video-side_") for name in rows) == 4 + 3  # the tower has three blocks
    assert {"video-side_ours_3-branch-blocks_seed0"} < set(rows)
    without = {f"without-the-LLM_{name}_seed{seed}" for name in ("ours", "settled") for seed in range(2)}
    assert without <= set(rows)
    assert rows["main_ours_seed0"]["columns"] != rows["without-the-LLM_ours_seed0"]["columns"]
    tuned, frozen = (
        rows[f"video-side_ours_no-weight-interpolation{more}_seed0"]["num_parameters"]
        for more in ("--CLIP-trunk-tuned", "")
    )
    assert tuned > frozen
    assert {f"length_ours_4-joint-steps_seed{seed}" for seed in range(2)} <= set(rows)
    assert {f"length_ours_4-joint-steps--held-to-CLIP_seed{seed}" for seed in range(2)} <= set(rows)
    for row in rows.values():
        assert row["session"]["hardware"]["num_cpus"] == os.cpu_count() and row["session"]["command"]
        assert set(row["columns"]) == set(COLUMNS)
        for figures in row["columns"].values():
            assert 0 < figures["all"]["micro_aupr"] <= 1
    assert rows["main_ours_seed0"]["alpha"] in (0.25, 0.5, 0.75, 1.0)
    assert rows["main_clip_photo_seed0"]["num_parameters"] == 0 < rows["main_coop_seed0"]["num_parameters"]
    assert rows["main_ours_seed0"]["columns"] != rows["main_ours_seed1"]["columns"]

    text = (report / "SUITE.md").read_text(encoding="utf-8")
    ours = [rows[f"main_ours_seed{seed}"]["columns"]["seen"]["all"]["micro_aupr"] for seed in range(2)]
    assert f"| ours | {sum(ours) / 2:.3f}" in text
    assert f"on {os.cpu_count()} CPUs (" in text and f"torch {torch.__version__.split('+')[0]}" in text
    assert "vidlex eval suite --tiny" in text and "without the LLM" in text and "no weight interpolation" in text
    long = text[text.index("## Longer training: 4 joint steps\n") :]
    ours = [rows[f"length_ours_4-joint-steps_seed{seed}"]["columns"]["seen"]["all"]["micro_aupr"] for seed in range(2)]
    assert f"| 4 joint steps | {sum(ours) / 2:.3f}" in long and f"ours {sum(ours) / 2:.3f}" in long
    assert "## Longer training: 4 joint steps, the bare name in the mean\n" in text
    bare = text[text.index("## Without the LLM\n") : text.index("## Ablations\n")]
    means = [
        mean_of(rows[f"{group}_settled_seed{seed}"]["columns"]["unseen_actions"]["parts"] for seed in range(2))
        for group in ("main", "without-the-LLM")
    ]
    assert f"new words for seen actions: {means[0]:.3f}" in bare and f"against {means[1]:.3f}" in bare
    held = text[text.index("## Longer training: 4 joint steps, held to CLIP\n") :]
    lost = [rows[f"length_ours_4-joint-steps--held-to-CLIP_seed{seed}"]["thresholds"]["loss"] for seed in range(2)]
    assert "have 6 additional pair labels" in held and f"is lower by {sum(lost) / 2:.3f}" in held
    assert {path.name for path in report.iterdir()} >= {"suite.json", "curves_seen.png", "reliability_ours.png"}

    served = load_classifier(str(out / "checkpoints" / "main_ours_seed0"), device="cpu")
    features = served.encode_labels(["beach", "unknown label"])
    assert features.shape == (2, 24) and np.isfinite(features).all()

    before = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    main(config, **arguments)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == before


@pytest.mark.usefixtures("without_curves")
def test_suite_with_clip_regulariser_in_all_rows(tmp_path: Path) -> None:
    folder = write_backbones(tmp_path)
    skipped = ",".join(name for name in BASELINES if name != "coop")
    config = replace(
        TINY, llm=str(folder / "llm"), held=True, pair_weight=2.0, num_seeds=1, num_long_steps=0, with_ablations=False,
        skipped=skipped, all_positives=True, num_settling_steps=3, num_test_videos=120, state_noise=0.5,
    )  # fmt: skip
    clip, out = f"local-dir:{folder / 'clip'}", tmp_path / "suite"
    report = main(config, clip_name=clip, out=out, art_cache=tmp_path, sheet=tiny_sheet())
    log = [json.loads(line) for line in (out / "runs" / "main_ours_seed0" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("video_hold", 0) > 0 for line in log)
    assert served_config(out / "checkpoints" / "main_ours_seed0").label.soft_behind
    joint, settled = (load_checkpoint(out / "checkpoints" / f"main_{name}_seed0")[1] for name in ("ours", "settled"))
    changed = {name.split(".")[0] for name in joint if not torch.equal(joint[name], settled[name])}
    assert joint.keys() == settled.keys() and changed == {"label"}
    assert torch.equal(joint["label.prefixes"], settled["label.prefixes"])
    ours_row, settled_row = (
        json.loads((out / "rows" / f"main_{name}_seed0.json").read_text()) for name in ("ours", "settled")
    )
    before, after, probe = ours_row["columns"], settled_row["columns"], settled_row["held_out_probe"]
    assert probe.keys() == {"branch", "frame_mean"} and all(0 < value <= 1 for value in probe.values())
    by_trust = settled_row["by_trust"]
    assert max(by_trust, key=lambda trust: by_trust[trust]["validation"]) == str(settled_row["trust"])
    assert served_config(out / "checkpoints" / "main_settled_seed0").label.name_trust == settled_row["trust"]
    assert before["unseen_style"] != after["unseen_style"]
    text = (report / "SUITE.md").read_text(encoding="utf-8")
    assert f"| ours, labels settled | {after['seen']['all']['micro_aupr']:.3f}" in text
    assert "3 more steps of the label encoder" in text and "seen labels, Peak F1: ours, labels settled" in text
    options = {row.change: row.options for row in ablations(config, 3)}
    assert "noise of 0.5 standard deviations" in text and "no noise on the states" in options
    assert "Ours is held to CLIP." in text and "trained with the additional pairs too" in text
    assert options["not held to CLIP"]["fit"] == {"video_hold": 0.0, "label_hold": 0.0}
    assert "not held to CLIP" not in {row.change for row in ablations(TINY, 3)}
    longer_rows = longer_runs(replace(config, num_long_steps=9))
    assert all(row.options.get("emoji", {}).get("num_more_pairs", 0) == 0 for row in longer_rows)
    longer_options = {row.change: row.options["fit"] for row in longer_rows}
    paper = longer_options.pop("9 joint steps, as in the paper")
    assert paper["num_joint_steps"] == 9 and not paper["video_hold"]
    assert longer_options.pop("9 joint steps, as in the paper but for weight interpolation") == {
        **paper, "interpolation_lambda": 0.0
    }  # fmt: skip
    assert set(longer_options) == {"9 joint steps, not held to CLIP"}


def mean_of(parts: Iterable[dict[str, Any]]) -> float:
    return float(np.mean([figures["new words for actions"]["micro_aupr"] for figures in parts]))


def served_config(folder: Path) -> CheckpointConfig:
    return load_checkpoint(folder)[0]


def test_row_of_another_process_is_skipped_then_waited_for(tmp_path: Path) -> None:
    class Out:
        out = tmp_path

    started, may_finish, trained = threading.Event(), threading.Event(), []

    def train_slowly(context: SuiteContext, row: Row) -> dict[str, Any]:
        started.set()
        assert may_finish.wait(60)
        trained.append(row.method)
        return {}

    def refuse(context: SuiteContext, row: Row) -> dict[str, Any]:
        raise AssertionError("another thread has the row")

    context, row = cast(SuiteContext, Out()), Row("ours")
    other = threading.Thread(target=_ensure_row, args=(context, row, train_slowly), kwargs={"waits": False})
    other.start()
    assert started.wait(60)
    _ensure_row(context, row, refuse, waits=False)
    assert not trained
    may_finish.set()
    _ensure_row(context, row, refuse, waits=True)
    assert trained == ["ours"] and [path.stem for path in (tmp_path / "rows").iterdir()] == [row.key]
    other.join()


def test_settled_row_is_trained_after_its_base_row(tmp_path: Path) -> None:
    class Out:
        out = tmp_path

    context, trained = cast(SuiteContext, Out()), []

    def train(context: SuiteContext, row: Row) -> dict[str, Any]:
        trained.append(row.method)
        return {}

    _ensure_row(context, Row(SETTLED, 1), train, waits=False)
    assert not trained
    for method in ("ours", SETTLED):
        _ensure_row(context, Row(method, 1), train, waits=False)
    assert trained == ["ours", SETTLED]
    ours = [Row("ours", 0), Row("coop", 0), *without_llm(TINY)]
    assert [row.key for row in settled_rows(replace(TINY, num_settling_steps=1), ours)] == [
        "main_settled_seed0", "without-the-LLM_settled_seed0", "without-the-LLM_settled_seed1",
    ]  # fmt: skip
    assert not settled_rows(TINY, ours)


def test_settled_row_without_a_base_checkpoint_is_refused(tmp_path: Path) -> None:
    class Out:
        out = tmp_path

        def checkpoint(self, row: Row) -> Path:
            return tmp_path / "checkpoints" / row.key

    with pytest.raises(CheckpointError, match=r"delete .*rows/main_ours_seed1.json and run the command again"):
        train_settled(cast(SuiteContext, Out()), Row(SETTLED, 1))


def row_with(method: str, seed: int, value: float) -> dict[str, Any]:
    figures = {"micro_aupr": value, "micro_peak_f1": value}
    return {"method": method, "seed": seed, "columns": {name: {"all": figures, "parts": {}} for name in COLUMNS}}


def test_comparison_states_its_spread() -> None:
    facts = {"one_frame": dict.fromkeys(("action_aupr", "action_chance", "scene_aupr", "scene_chance"), 0.5)}
    one = comparisons([row_with("ours", 0, 0.5), row_with("clip_name", 0, 0.25)], facts)
    assert "- rare pairs, Peak F1: ours 0.500, best baseline CLIP, bare class name 0.250: ahead (+0.250, one run" in one
    probed = [
        {
            **row_with("settled", seed, 0.5),
            "held_out_probe": {"branch": branch, "frame_mean": 0.1},
            "trust": 0.5,
            "by_trust": {str(t): {"validation": 0.4 + t / 10, "unseen nouns": branch + t} for t in (0.0, 0.5)},
        }
        for seed, branch in ((0, 0.2), (1, 0.3))
    ]
    text = comparisons([*probed, row_with("clip_name", 0, 0.25)], facts)
    assert "AUPR 0.250 ± 0.071 on the branch's features, 0.100 on CLIP's frame means: 2.50 times" in text
    assert "0.0: 0.400 ± 0.000 and 0.250 ± 0.071; 0.5: 0.450 ± 0.000 and 0.750 ± 0.071. Chosen: 0.5, 0.5." in text
    seeds = [row_with("ours", 0, 0.2), row_with("ours", 1, 0.4)]
    assert "within the spread (+0.050, spread 0.141)" in comparisons([*seeds, row_with("clip_name", 0, 0.25)], facts)
    assert "behind (-0.200, spread 0.141)" in comparisons([*seeds, row_with("clip_name", 0, 0.5)], facts)


def test_pool_equals_the_output_of_the_tower(tmp_path: Path) -> None:
    clip, _ = tiny_clip()
    config = VideoEncoderConfig(num_branch_blocks=1, num_frames=3)
    encoder = VideoEncoder(clip.visual, config, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    canvas = clip.visual.image_size[0]
    world = World(tmp_path, canvas=canvas, sheet=tiny_sheet())
    pool = build_pool(tmp_path / "a.safetensors", world, encoder, 70, seed=5, identity="x")
    assert len(pool) == 70 and pool.frames is not None
    with torch.no_grad():
        for chunk, frames in zip(pool.chunks(), pool.chunks(frames=True), strict=True):
            assert isinstance(chunk, Trunk) and isinstance(frames, torch.Tensor)
            assert torch.allclose(encoder(chunk, 0.5), encoder(frames, 0.5), atol=0.02)
    assert torch.equal(pool_targets(world, 70, 5), pool.targets)
    again = build_pool(tmp_path / "a.safetensors", world, encoder, 70, seed=5, identity="x")
    assert torch.equal(again.targets, pool.targets)
    labels = training_labels(world, EmojiConfig())
    videos = PoolSource(pool, pool, labels, batch_size=16, seed=0)
    drawn = [videos.draw(step) for step in range(8)]
    assert sum(int(batch.targets.sum()) for batch in drawn[:4]) != sum(int(batch.targets.sum()) for batch in drawn[4:])
    assert torch.equal(drawn[0].targets, PoolSource(pool, pool, labels, batch_size=16, seed=0).draw(0).targets)
    assert not torch.equal(drawn[0].targets, PoolSource(pool, pool, labels, batch_size=16, seed=1).draw(0).targets)
    with pytest.raises(ValueError, match="has no frames"):
        replace(pool, frames=None).rows(torch.tensor([0]), frames=True)
