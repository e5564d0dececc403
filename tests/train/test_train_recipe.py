"""Recipes: their stages, a run with all of them, and what a repeated command computes again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from support.tiny_fit import fit, write_backbones
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.extensions.features import extends_labels, video_head
from vidlex.model.factory import create_clip
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.suite.ship import training_of_card
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train import stages
from vidlex.model.train.export import named_clip, with_absolute_llm
from vidlex.model.train.extensions.clip_hold import ClipKnowledge
from vidlex.model.train.extensions.create import create_extensions
from vidlex.model.train.fit import LabelTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.run_log import read_log
from vidlex.model.train.recipe import recipe
from vidlex.model.video.encoder import VideoEncoder

ALL_STAGES = "start,prefix,warmup,joint,label"
HELD: dict[str, Any] = {
    "recipe": ALL_STAGES, "num_warmup_steps": 3, "num_prefix_vocabulary": 20, "video_hold": 0.5, "label_hold": 2.0,
    "state_noise": 0.5, "label_options": {"soft_behind": True, "name_trust": 0.5},
    "emoji": EmojiConfig(num_more_pairs=5, num_pool_videos=40),
}  # fmt: skip


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbones(tmp_path_factory.mktemp("backbones"))


def test_default_recipe_is_the_papers() -> None:
    joint, prefix, label = recipe(FitConfig())
    assert set(joint.rates) == {"new", "copied", "prompting", "scoring"} and joint.videos == "drawn"
    assert prefix.through_llm and prefix.videos == label.videos == "branch"
    assert set(label.rates) == {"prompting", "scoring"} and not label.restarts
    _, first_prefix, warmup, *_ = recipe(FitConfig(recipe=ALL_STAGES))
    assert first_prefix.videos == "frame_means" and warmup.restarts
    assert not recipe(FitConfig(recipe="warmup, joint"))[0].restarts


def test_papers_step_has_no_extensions() -> None:
    def refuse() -> ClipKnowledge:
        raise AssertionError("asked for CLIP's knowledge")

    for stage in recipe(FitConfig()):
        assert not create_extensions(FitConfig(), stage, cast(Any, None), cast(Any, None), refuse)
    assert not extends_labels(LabelEncoderConfig()) and video_head(LabelEncoderConfig()) is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("joint,settle", "unknown stage 'settle'"),
        ("joint,label,label", "'label' twice"),
        ("joint,warmup", "it comes before the joint stage"),
        ("prefix", "needs the joint stage"),
    ],
)
def test_recipe_without_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(FitConfig(recipe=text))


@pytest.mark.usefixtures("without_curves")
def test_prefix_stage_before_the_branch_leaves_its_prefixes_only(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start: dict[str, dict[str, Tensor]] = {}
    run = stages.run

    def observed(task: Any, *arguments: Any) -> None:
        label = task.network.label
        at_start[task.name] = {
            "prompting": torch.cat([p.detach().flatten().clone() for p in label.prompting.parameters()]),
            "prefixes": label.prefixes.detach().clone(),
            "mean": label.state_mean.clone(),
        }
        assert task.name != "start" or (isinstance(task, LabelTask) and len(task.labels.names) == 20)
        run(task, *arguments)

    monkeypatch.setattr(stages, "run", observed)
    fit(backbones, tmp_path, **HELD)
    kept = {path.stem for path in (tmp_path / "features").iterdir()}
    assert kept == {"training-frame_means", "training-branch", "validation-branch", "validation-branch-extended"}
    assert ",".join(at_start) == ALL_STAGES
    start, prefix, warmup, joint, label = at_start.values()
    assert torch.equal(start["prompting"], warmup["prompting"])
    assert not torch.equal(start["prompting"], prefix["prompting"])
    assert not torch.equal(prefix["prefixes"], warmup["prefixes"]) and not torch.equal(prefix["mean"], warmup["mean"])
    assert torch.equal(warmup["prefixes"], joint["prefixes"]) and torch.equal(warmup["mean"], label["mean"])
    lines = [line for line in read_log(tmp_path) if "loss" in line]
    held = {line["stage"] for line in lines if "label_hold" in line}
    assert held == {"warmup", "joint", "label"}
    assert {line["stage"] for line in lines if "video_hold" in line} == {"joint"}

    # The repeated command reads everything from the folder: the language model and the encoder of videos do not run.
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    for owner, name in ((LabelEncoder, "soft_attributes"), (VideoEncoder, "compute_trunk"), (stages, "choose_alpha")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(VideoEncoder, "forward", refuse)
    monkeypatch.setattr("vidlex.model.train.run_fit.with_precision", lambda config, *_: config)
    fit(backbones, tmp_path, **HELD)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    assert json.loads((tmp_path / "run.json").read_text())["stages"]["joint"]["alpha"] in (0.25, 0.5, 0.75, 1.0)
    training = training_of_card(tmp_path / "checkpoint")
    assert "warmup 3 steps; joint 7 steps; label 4 steps" in training
    assert "seed 0" in training and f"on {os.cpu_count()} CPUs" in training
    assert training_of_card(tmp_path / "elsewhere" / "checkpoint") == "not recorded"


def test_damaged_or_other_features_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    stages._write_kept(path, "a", torch.ones(2, 3), torch.zeros(2, 4, dtype=torch.int8))
    found = stages._read_kept(path, "a")
    assert found is not None and torch.equal(found[0], torch.ones(2, 3)) and found[1].dtype == torch.int8
    assert stages._read_kept(path, "b") is None
    path.write_bytes(path.read_bytes()[:40])
    assert stages._read_kept(path, "a") is None


def test_folders_in_a_checkpoint_are_absolute(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(backbones)
    clip = create_clip("local-dir:clip")
    assert named_clip(clip).source == f"local-dir:{backbones / 'clip'}" and named_clip(clip).digest == clip.digest
    assert with_absolute_llm(LabelEncoderConfig(llm="llm")).llm == str(backbones / "llm")
    for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct"):
        assert with_absolute_llm(LabelEncoderConfig(llm=name)).llm == name
