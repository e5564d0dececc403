"""Checkpoints of a tiny network trained for a few steps, saved, loaded and served; and open_clip zero-shot."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support.art import tiny_sheet
from support.tiny import write_llm
from support.tiny_fit import MEAN, MODEL_CFG, STD
from vidlex.model.baselines.class_name import TEMPLATES
from vidlex.model.calibration.domain import DefaultCalibration, LabelBank, Reference
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.calibration.stored import to_stored
from vidlex.model.checkpoint import CheckpointConfig, CheckpointError, copy_checkpoint, load_checkpoint, save_checkpoint
from vidlex.model.config import LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.emoji.world import World
from vidlex.model.factory import create_clip, create_label_encoder, load_classifier
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import emoji_opener
from vidlex.model.specs import ModelNotFound
from vidlex.model.train.export import restore_network, write_open_clip_folder
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.run_fit import main
from vidlex.model.video.encoder import VideoEncoder

FIT = FitConfig(
    num_joint_steps=3, batch_size=4, num_step_labels=16, num_cached_videos=24, num_validation_videos=24,
    num_prefix_steps=2, num_prefix_labels=3, num_label_steps=2, bf16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    clip = open_clip.CLIP(**MODEL_CFG).eval()
    return write_open_clip_folder(clip, MODEL_CFG, MEAN, STD, root / "clip"), write_llm(root / "llm")


def label_config(llm: Path) -> LabelEncoderConfig:
    return LabelEncoderConfig(
        llm=str(llm), num_prefixes=2, num_attributes=1, tokens_per_attribute=2, prompting_width=16, prompting_heads=2
    )


def fit(folders: tuple[Path, Path], out: Path, *, store_clip: bool = True, half: bool = True) -> Path:
    clip, llm = folders
    return main(
        FIT, VideoEncoderConfig(num_branch_blocks=2, num_frames=3), label_config(llm), clip_name=f"local-dir:{clip}",
        out=out, open_source=emoji_opener(EmojiConfig(), out, sheet=tiny_sheet()), checkpoint_id="tiny",
        store_clip=store_clip, half=half,
    )  # fmt: skip


def untrained(folders: tuple[Path, Path], num_branch_blocks: int) -> OpenVocabularyNetwork:
    clip, llm = create_clip(f"local-dir:{folders[0]}"), folders[1]
    video = VideoEncoderConfig(num_branch_blocks=num_branch_blocks, num_frames=3)
    encoder = VideoEncoder(clip.model.visual, video, mean=MEAN, std=STD)
    return OpenVocabularyNetwork(encoder, create_label_encoder(label_config(llm), clip)[0]).eval()


@pytest.fixture(scope="module")
def checkpoint(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(folders, tmp_path_factory.mktemp("run"))


def test_a_copy_has_another_id_and_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    copy_checkpoint(checkpoint, tmp_path / "copy", id="renamed")
    old, new = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "copy")
    assert new[0] == replace(old[0], id="renamed") and set(old[1]) == set(new[1])
    assert all(torch.equal(value, new[1][name]) for name, value in old[1].items())
    with pytest.raises(CheckpointError, match="has no config"):
        copy_checkpoint(tmp_path, tmp_path / "nothing", id="x")


def test_the_same_weights_are_the_same_file(checkpoint: Path, tmp_path: Path) -> None:
    """The fingerprint is that of the files."""
    config, tensors, _ = load_checkpoint(checkpoint)
    for name in ("a", "b", "c", "d"):
        save_checkpoint(tmp_path / name, config, dict(reversed(tensors.items())), half=True)
        assert load_checkpoint(tmp_path / name)[2] == load_checkpoint(tmp_path / "a")[2]


def test_a_trained_checkpoint_is_served(checkpoint: Path) -> None:
    classifier = load_classifier(str(checkpoint), device="cpu")
    assert (classifier.id, classifier.dim, classifier.num_frames) == ("tiny", 24, 3)
    assert classifier.geometry.image_size == 32 and classifier.geometry.resize_mode == "squash"
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (t, 32, 32, 3), dtype=np.uint8) for t in (3, 5, 3)]
    features = classifier.encode_video(videos)
    assert features.dtype == np.float32 and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    for i, video in enumerate(videos):
        assert np.allclose(classifier.encode_video([video])[0], features[i], atol=1e-5)
    labels = classifier.encode_labels(["ball", "something never seen", "spinning"])
    assert np.allclose(labels[1], classifier.encode_labels(["something never seen"])[0], atol=1e-5)
    p = classifier.scorer.probability(features @ labels.T)
    assert p.shape == (3, 3) and (p > 0).all() and (p < 1).all()


def test_served_scores_equal_those_of_the_trained_network(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """On the same frames, with weights stored in full precision."""
    classifier = load_classifier(str(fit(folders, tmp_path, half=False)), device="cpu")
    network = OpenVocabularyNetwork(classifier.video, classifier.label)  # type: ignore[attr-defined]
    config, _, _ = load_checkpoint(tmp_path / "checkpoint")
    with torch.no_grad():
        network.log_scale.fill_(float(np.log(config.scorer.logit_scale)))
        network.bias.fill_(config.scorer.logit_bias)
        world = World(tmp_path, canvas=32, sheet=tiny_sheet())
        sample = world.videos(4, 3, world.generator(0))
        expected = network.logits(network.video_features(sample.frames), network.label(list(world.labels)))
    features = classifier.encode_video([v.permute(0, 2, 3, 1).numpy() for v in sample.frames])
    served = classifier.scorer.logit(features @ classifier.encode_labels(world.labels).T)
    assert np.allclose(served, expected.numpy(), atol=1e-4)


def test_a_default_calibration_is_stored_in_full_precision(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    config, tensors, _ = load_checkpoint(checkpoint)
    assert config.calibration is None and load_classifier(str(checkpoint), device="cpu").calibration is None
    assert "calibration" not in json.loads((checkpoint / "config.json").read_text())
    features = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32)
    default = DefaultCalibration(DomainStatistics.of(features), Reference(0.1, 0.2), LabelBank(0.1, 0.2, 0.3))
    entry, more = to_stored(default)
    stored = tensors | {name: torch.from_numpy(value) for name, value in more.items()}
    save_checkpoint(tmp_path, replace(config, calibration=entry), stored, half=True)
    loaded = load_classifier(str(tmp_path), device="cpu").calibration
    assert loaded is not None
    np.testing.assert_array_equal(loaded.statistics.mean, default.statistics.mean)
    np.testing.assert_array_equal(loaded.statistics.basis, default.statistics.basis)
    assert replace(loaded, statistics=default.statistics) == replace(default, statistics=default.statistics)
    restore_network(tmp_path, untrained(folders, 2))
    for changed in (tensors, stored | {"calibration.mean": torch.zeros(23)}):
        save_checkpoint(tmp_path, replace(config, calibration=entry), changed, half=True)
        with pytest.raises(CheckpointError, match="calibration"):
            load_classifier(str(tmp_path), device="cpu")


def test_training_changes_the_branch_but_not_the_backbone(folders: tuple[Path, Path], checkpoint: Path) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    assert stored["branch.branch.0.temporal.out.weight"].abs().max() > 0  # zero at initialisation
    assert any(name.startswith("label.prefixes") for name in stored)
    assert not any("llm" in name for name in stored)
    clip = load_file(folders[0] / "open_clip_model.safetensors")
    for name, value in clip.items():  # the frozen backbone is unchanged
        assert torch.equal(stored[f"clip.{name}"].float(), value.half().float() if value.is_floating_point() else value)


def test_a_checkpoint_can_refer_to_its_backbone_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = fit(folders, tmp_path, store_clip=False)
    assert not any(name.startswith("clip.") for name in load_file(folder / "model.safetensors"))
    assert load_classifier(str(folder), device="cpu").dim == 24
    text = (folder / "config.json").read_text()
    config = CheckpointConfig.from_json(text)
    other = replace(config, clip=replace(config.clip, digest="0" * 16))
    (folder / "config.json").write_text(other.to_json())
    with pytest.raises(CheckpointError, match="other weights"):
        load_classifier(str(folder), device="cpu")


def test_only_options_in_use_are_written_and_read_back(checkpoint: Path) -> None:
    config, _, _ = load_checkpoint(checkpoint)
    for option, value in (("with_name", True), ("name_trust", 0.5), ("soft_behind", True)):
        assert option not in config.to_json()  # readable by earlier versions
        used = replace(config, label=replace(config.label, **{option: value}))
        assert CheckpointConfig.from_json(used.to_json()) == used


def test_the_fingerprint_covers_everything_that_determines_a_vector(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    config, _, identity = load_checkpoint(copy)
    assert load_checkpoint(checkpoint)[2] == identity

    def with_config(changed: CheckpointConfig) -> str:
        (copy / "config.json").write_text(changed.to_json())
        return load_checkpoint(copy)[2]

    assert with_config(replace(config, id="renamed", default_threshold=0.7)) == identity  # changes no vector
    assert with_config(replace(config, label=replace(config.label, renormalize=True))) != identity
    assert with_config(replace(config, label=replace(config.label, with_name=True))) != identity
    assert with_config(replace(config, label=replace(config.label, name_trust=0.5))) != identity
    assert with_config(replace(config, label=replace(config.label, soft_behind=True))) != identity
    assert with_config(replace(config, clip=replace(config.clip, mean=(0.5, 0.5, 0.5)))) != identity
    assert with_config(replace(config, llm_digest="other")) != identity
    assert with_config(config) == identity
    tensors = load_file(copy / "model.safetensors")
    tensors["label.prefixes"] = tensors["label.prefixes"] + 1
    save_file(tensors, copy / "model.safetensors")
    assert load_checkpoint(copy)[2] != identity


def test_invalid_checkpoints_are_rejected_with_the_reason(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="give a zoo name"):
        load_classifier(str(tmp_path / "nowhere"))
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    data = json.loads((copy / "config.json").read_text())
    for change, message in (({"format": 99}, "format"), ({"video": {"nonsense": 1}}, "config.json")):
        (copy / "config.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_classifier(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_classifier(str(copy))


def test_pickled_weights_are_rejected(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        load_classifier(str(tmp_path))


def test_zero_shot_equals_open_clips_classifier(folders: tuple[Path, Path]) -> None:
    """Frame mean and class-name prompts of a local folder in the hub's layout."""
    name = f"local-dir:{folders[0]}"
    classifier = load_classifier(f"open_clip:{name}", device="cpu")
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    frames = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        pictures = torch.stack([preprocess(Image.fromarray(f)) for f in frames])
        video = torch.nn.functional.normalize(model.encode_image(pictures).mean(dim=0), dim=0)
        weights = open_clip.build_zero_shot_classifier(
            model, tokenizer, ["dog", "red car"], [lambda c, t=t: t.format(c) for t in TEMPLATES["default"]]
        )  # [D, 2]
    similarities = classifier.encode_video([frames]) @ classifier.encode_labels(["dog", "red car"]).T
    assert np.allclose(similarities[0], (video @ weights).numpy(), atol=1e-5)
    assert classifier.scorer.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_errors_for_open_clip_names_show_the_format() -> None:
    with pytest.raises(ModelNotFound, match="NAME/PRETRAINED"):
        load_classifier("open_clip:ViT-B-16")
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_classifier("open_clip:No-Such-Model/openai")


def test_a_network_is_restored_from_a_checkpoint(folders: tuple[Path, Path], checkpoint: Path) -> None:
    network, served = untrained(folders, 2), load_classifier(str(checkpoint), device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    videos = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    expected = torch.from_numpy(np.stack((served.encode_video([frames])[0], served.encode_labels(["beach"])[0])))

    @torch.no_grad()
    def differences() -> list[float]:
        features = torch.stack((network.video_features(videos)[0], network.label.encode_labels(["beach"])[0]))
        return (features - expected).abs().amax(dim=1).tolist()

    config, tensors, _ = load_checkpoint(checkpoint)
    assert max(differences()) > 0.01
    restore_network(checkpoint, network)
    branch = network.video.trainable_parameters()
    assert branch and all(torch.equal(value, tensors[f"branch.{name}"]) for name, value in branch.items())
    assert max(differences()) < 0.001  # the checkpoint has half precision
    assert network.log_scale.exp().item() == pytest.approx(config.scorer.logit_scale)
    assert network.bias.item() == pytest.approx(config.scorer.logit_bias)
    with pytest.raises(CheckpointError, match="do not match the network"):
        restore_network(checkpoint, untrained(folders, 1))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"version https://git-lfs"])
def test_damaged_weights_are_reported(checkpoint: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is damaged or a Git LFS pointer .* download it again"
    ):
        load_classifier(str(tmp_path / "copy"), device="cpu")


@pytest.mark.parametrize("part", ["clip.", "branch.", "label."])
@pytest.mark.parametrize("wrong", ["shape", "missing"])
def test_weights_that_do_not_match_the_config_are_listed(
    checkpoint: Path, tmp_path: Path, part: str, wrong: str
) -> None:
    config, tensors, _ = load_checkpoint(checkpoint)
    name = next(name for name, value in tensors.items() if name.startswith(part) and value.ndim == 2)
    if wrong == "shape":
        tensors[name] = tensors[name][:1]
    else:
        del tensors[name]
    save_checkpoint(tmp_path, config, tensors, half=False)
    with pytest.raises(CheckpointError, match=f"do not match the network.*{re.escape(name.removeprefix(part))}"):
        load_classifier(str(tmp_path), device="cpu")


def test_name_trust_is_set_after_training_and_served(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the same training, features have twice the width, and their first half equals the plain features."""
    monkeypatch.setattr(
        "vidlex.model.extensions.name_trust.AGREEMENT", -1.0
    )  # barely trained features do not agree with CLIP's
    clip, llm = folders
    trusting = main(
        FIT, VideoEncoderConfig(num_branch_blocks=2, num_frames=3), replace(label_config(llm), name_trust=0.5),
        clip_name=f"local-dir:{clip}", out=tmp_path, checkpoint_id="tiny",
        open_source=emoji_opener(EmojiConfig(), tmp_path, sheet=tiny_sheet()),
    )  # fmt: skip
    plain, fused = (load_checkpoint(folder) for folder in (checkpoint, trusting))
    assert all(torch.equal(value, fused[1][name]) for name, value in plain[1].items())
    assert fused[0].scorer.calibration != plain[0].scorer.calibration and fused[2] != plain[2]

    old, new = (load_classifier(str(folder), device="cpu") for folder in (checkpoint, trusting))
    assert (old.dim, new.dim) == (24, 48)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    video, label = new.encode_video([frames])[0], new.encode_labels(["beach"])[0]
    assert np.allclose(video[:24] * 2**0.5, old.encode_video([frames])[0], atol=1e-5)
    assert label.shape == (48,) and np.abs(label[24:]).max() > 0.01

    network = untrained(folders, 2)
    restore_network(trusting, network)
    videos = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        assert np.allclose(network.video_features(videos)[0].numpy(), video, atol=1e-3)
        assert np.allclose(network.label.encode_labels(["beach"])[0].numpy(), label, atol=1e-3)
