"""Checkpoints with the method "kernel": written, loaded, served; damaged ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.kernel import (
    NUM_LANDMARKS,
    SIDE,
    KernelFiles,
    kernel_config,
    random_tensors,
    random_tower,
    write_kernel_checkpoint,
    write_tower,
)
from support.tiny import write_llm
from vidlex.model.calibration.domain import DefaultCalibration, Reference
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.checkpoint import CheckpointConfig, CheckpointError, copy_checkpoint, load_checkpoint
from vidlex.model.config import KernelConfig
from vidlex.model.factory import load_classifier
from vidlex.model.kernel.export import write_checkpoint
from vidlex.model.kernel.loading import create_tower
from vidlex.model.scoring import Calibration
from vidlex.model.specs import zoo_dir
from vidlex.model.video.motion_branch import MotionBranch, MotionBranchConfig
from vidlex.model.video.still_motion import StillMotionEncoder
from vidlex.model.weights.cache import WeightsError
from vidlex.model.weights.model import fetch_model
from vidlex.model.weights.tower import fetch_tower

NAMES = ["cat", "a red car", "playing the violin"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> KernelFiles:
    return write_kernel_checkpoint(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="module")
def classifier(files: KernelFiles) -> Any:
    return load_classifier(str(files.checkpoint), device="cpu")


def videos(*lengths: int) -> list[Any]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (t, 8, 8, 3), dtype=np.uint8) for t in lengths]
    return [v.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2) for v in coarse]


def feature_by_hand(files: KernelFiles, frames: Any) -> Any:
    """Through timm's own passes, one frame at a time, and the formula in numpy."""
    config, tower = files.config, random_tower()
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    maps, features = [], []
    tower.blocks[4].register_forward_hook(lambda _module, _inputs, output: maps.append(output[0]))
    for frame in frames:
        pixels = torch.tensor((frame / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)
        features.append(tower.forward_features(pixels[None])[0].numpy().mean(axis=(1, 2)))
    z = np.mean(features, axis=0) - files.tensors["video.centre"].numpy()
    z /= np.linalg.norm(z)
    assert config.motion is not None
    branch = MotionBranch(MotionBranchConfig.from_json(config.motion)).eval()
    branch.load_state_dict({k.removeprefix("motion."): v for k, v in files.tensors.items() if k.startswith("motion.")})
    with torch.no_grad():
        scores = branch(torch.stack(maps)[None])[0].numpy()
    h = scores / (branch.config.max_score * np.sqrt(len(scores)))
    c, m = config.constant, config.motion_weight
    row = np.array([*z, c, *(m * h), m * np.sqrt(1 - h @ h)])
    return row / np.sqrt(1 + c**2 + m**2)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_a_video_s_feature_is_the_formula(files: KernelFiles, classifier: Any, length: int) -> None:
    (video,) = videos(length)
    feature = classifier.encode_video([video])[0]
    expected = feature_by_hand(files, video)
    assert feature.shape == (files.config.dim,) == (classifier.dim,)
    np.testing.assert_allclose(feature, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(feature), 1, atol=1e-6)


def test_features_do_not_depend_on_the_batch(classifier: Any) -> None:
    some = videos(3, 1, 3, 12, 5)
    together = classifier.encode_video(some)
    for video, feature in zip(some, together, strict=True):
        np.testing.assert_allclose(classifier.encode_video([video])[0], feature, atol=1e-6)
    assert np.abs(together[0] - together[2]).max() > 1e-3
    backwards = classifier.encode_video([some[3][::-1].copy()])[0]
    assert np.abs(backwards - together[3]).max() > 1e-4, "the order of the frames matters"
    labels = classifier.encode_labels(NAMES)
    np.testing.assert_allclose(classifier.encode_labels(NAMES[1:2])[0], labels[1], atol=1e-5)
    assert (np.linalg.norm(labels, axis=1) <= 1).all() and classifier.encode_labels([]).shape == (0, classifier.dim)


def test_a_logit_is_the_sum_of_its_parts(files: KernelFiles, classifier: Any) -> None:
    """w' z + b' + u h, for labels that are not scaled down."""
    config, n = files.config, files.config.num_channels
    (video,) = videos(4)
    feature, labels = classifier.encode_video([video])[0], classifier.encode_labels(NAMES)
    length, c, m = config.video_length, config.constant, config.motion_weight
    z, h = feature[:n] * length, feature[n + 1 : -1] * length / m
    weights, bias = labels[:, :n] * config.max_logit, labels[:, n] * config.max_logit * c
    motion = labels[:, n + 1 : -1] * config.max_logit * m
    np.testing.assert_allclose(np.linalg.norm(z), 1, atol=1e-5)
    expected = weights @ z + bias + motion @ h
    np.testing.assert_allclose(classifier.scorer.logit(labels @ feature), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.05


def test_it_is_loaded_as_it_was_written(files: KernelFiles, classifier: Any, tmp_path: Path) -> None:
    config, tensors, fingerprint = load_checkpoint(files.checkpoint)
    assert (config.kernel, config.method, config.video.num_frames) == (files.config, "kernel", 3)
    assert CheckpointConfig.from_json(config.to_json()) == config
    assert tensors.keys() == files.tensors.keys()
    assert all(torch.equal(value, files.tensors[name]) for name, value in tensors.items())
    assert classifier.fingerprint == fingerprint and classifier.num_frames == 3
    assert (classifier.geometry.image_size, classifier.geometry.resize_mode) == (SIDE, "shortest")
    assert classifier.info() == {
        "backbone": str(files.tower), "method": "kernel", "llm": str(files.llm), "branch_blocks": 0,
        "motion_labels": 3, "licence": "Apache-2.0", "trained_labels": NUM_LANDMARKS,
        "encoder": classifier.info()["encoder"],
    }  # fmt: skip
    assert classifier.scorer.logit_scale == files.config.logit_scale
    copy_checkpoint(files.checkpoint, tmp_path / "copy", id="renamed")
    assert load_checkpoint(tmp_path / "copy")[2] == fingerprint
    assert classifier.describe_labels(["cat"])[0].prompts[0].endswith("Label: cat\nVisible:")


def test_what_changes_a_vector_changes_the_fingerprint(files: KernelFiles, tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> str:
        folder = edited(files, tmp_path, config=lambda values: {**values, "kernel": {**values["kernel"], **changes}})
        return load_checkpoint(folder)[2]

    own = fingerprint()
    assert own == load_checkpoint(files.checkpoint)[2]
    assert len({own, fingerprint(slope=3.1), fingerprint(prompts=["kind", "visible"])}) == 3


def test_other_checkpoints_are_as_before() -> None:
    """Their files and fingerprints: labels in stores were encoded with them."""
    folder = zoo_dir() / "emoji-small"
    config, _, fingerprint = load_checkpoint(folder)
    assert config.to_json() == (folder / "config.json").read_text(encoding="utf-8")
    assert (
        fingerprint == json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["held_out_20"]["fingerprint"]
    )


def edited(
    files: KernelFiles,
    folder: Path,
    *,
    config: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors,
) -> Path:
    shutil.copytree(files.checkpoint, folder, dirs_exist_ok=True)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config(values)))
    stored = load_file(folder / "model.safetensors")
    save_file(tensors(stored), folder / "model.safetensors", metadata={"format": "vidlex"})
    return folder


@pytest.mark.parametrize("name", ["label.alpha", "label.kinds", "video.centre", "motion.out.1.weight"])
def test_missing_damaged_and_unknown_tensors_are_refused(files: KernelFiles, tmp_path: Path, name: str) -> None:
    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in tensors.items() if key != name}

    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {name: tensors[name][:-1].contiguous()}

    def not_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        value = tensors[name].clone()
        value.view(-1)[0] = float("nan")
        return tensors | {name: value}

    def more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {f"{name}.more": torch.zeros(1)}

    for i, damage in enumerate((without, cut, not_finite, more)):
        folder = edited(files, tmp_path / str(i), tensors=damage)
        with pytest.raises(CheckpointError, match=name):
            load_classifier(str(folder), device="cpu")


def test_a_damaged_file_is_refused(files: KernelFiles, tmp_path: Path) -> None:
    folder = edited(files, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": None}, "entry kernel"),
        ({"method": "ours"}, "entry kernel"),
        ({"kernel": {"rank": 6}}, "label.landmarks"),
        ({"kernel": {"prompts": ["visible", "unheard of"]}}, "unheard of"),
        ({"kernel": {"num_channels": 640}}, "1280 channels"),
        ({"kernel": {"slope": -1}}, "slope must be positive"),
        ({"kernel": {"speed": 1}}, "speed"),
        ({"kernel": {"motion": {"num_labels": 3, "colour": 1}}}, "colour"),
        ({"kernel": {"motion": None}}, "motion"),
        ({"clip": {"digest": "0" * 16}}, "other weights"),
        ({"llm_digest": "0" * 16}, "other weights"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    files: KernelFiles, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    def change(values: dict[str, Any]) -> dict[str, Any]:
        return values | {k: {**values[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}

    with pytest.raises(CheckpointError, match=message):
        load_classifier(str(edited(files, tmp_path, config=change)), device="cpu")


def test_tensors_are_checked_when_they_are_written(files: KernelFiles, tmp_path: Path) -> None:
    tensors = dict(files.tensors)
    del tensors["label.offset"]
    with pytest.raises(CheckpointError, match=r"label\.offset"):
        write_checkpoint(tmp_path / "a", files.config, tensors, id="x", tower=str(files.tower))
    with pytest.raises(ValueError, match="2 names of 6 landmarks"):
        write_checkpoint(
            tmp_path / "b", files.config, files.tensors, id="x", tower=str(files.tower), landmark_names=["a", "b"]
        )
    assert list(tmp_path.iterdir()) == []


def test_without_motion_and_kinds_with_calibrations(files: KernelFiles, tmp_path: Path) -> None:
    config = kernel_config(files.llm, with_kinds=False, with_motion=False)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, config.dim)).astype(np.float32)
    statistics = DomainStatistics.of(features / np.linalg.norm(features, axis=1, keepdims=True))
    write_checkpoint(
        tmp_path / "c", config, {k: v.numpy() for k, v in random_tensors(config).items()}, id="still",
        tower=str(files.tower), scorer_calibration=Calibration(1.5, -0.5), default_threshold=0.3,
        resize_mode="squash", calibration=DefaultCalibration(statistics, Reference(0.1, 0.2), None),
    )  # fmt: skip
    classifier = load_classifier(str(tmp_path / "c"), device="cpu")
    assert classifier.dim == config.dim == 1281 and classifier.info()["motion_labels"] == 0
    assert classifier.scorer.calibration == Calibration(1.5, -0.5) and classifier.default_threshold == 0.3
    assert classifier.calibration is not None
    np.testing.assert_array_equal(classifier.calibration.statistics.mean, statistics.mean)
    feature = classifier.encode_video(videos(2))[0]
    np.testing.assert_allclose(feature[-1], config.constant / np.sqrt(1 + config.constant**2), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(feature), 1, atol=1e-6)


def test_what_it_needs_is_fetched(files: KernelFiles, tmp_path: Path) -> None:
    assert fetch_model(str(files.checkpoint)) == [files.llm, files.tower]
    moved = edited(files, tmp_path, config=lambda v: {**v, "clip": {**v["clip"], "source": "/no/such/tower"}})
    for load in (fetch_model, load_classifier):
        with pytest.raises(WeightsError, match="no image tower"):
            load(str(moved))


def test_another_tower_is_refused(files: KernelFiles, tmp_path: Path) -> None:
    other = write_tower(tmp_path / "tower", seed=1)
    folder = edited(files, tmp_path / "x", config=lambda v: {**v, "clip": {**v["clip"], "source": str(other)}})
    with pytest.raises(CheckpointError, match="other weights"):
        load_classifier(str(folder), device="cpu")
    (other / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot load the image tower"):
        load_classifier(str(folder), device="cpu")


def test_the_default_tower() -> None:
    tower = create_tower("efficientnet-lite2")
    assert (tower.image_size, tower.mean, tower.std) == (260, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    expected: Any = timm.create_model(f"local-dir:{fetch_tower()}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(1, 3, 260, 260)
    with torch.inference_mode():
        found = StillMotionEncoder(tower.model, KernelConfig(), num_frames=8, mean=tower.mean, std=tower.std)
        assert torch.equal(found.run_tower(pixels).features, expected(pixels))


def test_the_same_tensors_are_the_same_files(files: KernelFiles, tmp_path: Path) -> None:
    names = [f"landmark {i}" for i in range(NUM_LANDMARKS)]
    write_checkpoint(
        tmp_path / "again", replace(files.config), files.tensors, id="tiny", landmark_names=names,
        tower=str(files.tower), num_frames=3,
    )  # fmt: skip
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (files.checkpoint / name).read_bytes()
    write_llm(tmp_path / "llm", seed=1)
    with pytest.raises(CheckpointError, match="other weights"):
        config = lambda v: {**v, "kernel": {**v["kernel"], "llm": str(tmp_path / "llm")}}  # noqa: E731
        load_classifier(str(edited(files, tmp_path / "b", config=config)), device="cpu")
