"""The temporal branch on image towers of every family, against the towers' own outputs. Random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from support.towers import create_small_timm, write_small_model
from vidlex.model.checkpoint import CheckpointConfig, save_checkpoint
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.factory import Clip, create_clip, load_classifier
from vidlex.model.scoring import Scorer
from vidlex.model.text.clip_text import ClipText
from vidlex.model.torch_classifier import TorchClassifier
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.towers.create import create_tower
from vidlex.model.video.towers.preprocessing import read_preprocessing
from vidlex.model.video.towers.table import TOWER_ROWS, TowerRow

OPEN_CLIP = tuple(row for row in TOWER_ROWS if row.library == "open_clip")
TIMM = tuple(row for row in TOWER_ROWS if row.library == "timm")
NUM_BLOCKS = 2


def name_of(row: TowerRow) -> str:
    return row.name


@pytest.fixture(autouse=True)
def small_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", create_small_timm)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, made = tmp_path_factory.mktemp("towers"), {}

    def clip(row: TowerRow) -> Clip:
        if row not in made:
            made[row] = create_clip(f"local-dir:{write_small_model(row, root / row.name)}")
        return made[row]

    return clip


def make_encoder(clip: Clip) -> VideoEncoder:
    torch.manual_seed(1)
    config = VideoEncoderConfig(num_branch_blocks=NUM_BLOCKS, num_frames=3)
    return VideoEncoder(clip.model.visual, config, mean=clip.source.mean, std=clip.source.std).eval()


def make_frames(clip: Clip, num_videos: int = 2) -> Tensor:
    """[B, T, 3, H, W] uint8 of 16 random colours: towers with random weights hardly tell noise from noise."""
    cell = clip.source.geometry.image_size // 4
    generator = torch.Generator().manual_seed(2)
    colours = torch.randint(0, 256, (num_videos, 3, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return colours.repeat_interleave(cell, dim=3).repeat_interleave(cell, dim=4)


def own_frame_mean(model: Any, encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """By open_clip's ``encode_image``, or by a timm model itself."""
    encode = getattr(model, "encode_image", None)
    pixels = encoder.to_pixels(frames).flatten(0, 1)
    with torch.no_grad():
        features: Tensor = model(pixels) if encode is None else encode(pixels, normalize=False)
    return features.view(*frames.shape[:2], -1).mean(dim=1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def train_step(encoder: VideoEncoder, optimizer: torch.optim.Optimizer, frames: Tensor, target: Tensor) -> float:
    optimizer.zero_grad()
    loss = (1 - F.cosine_similarity(encoder(frames, alpha=0.7), target)).mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(encoder: VideoEncoder, frames: Tensor, num_steps: int = 1) -> list[float]:
    encoder.train()
    optimizer = torch.optim.Adam(encoder.trainable_parameters().values(), lr=3e-3)
    with torch.no_grad():
        target = torch.randn(encoder(frames[:1]).shape, generator=torch.Generator().manual_seed(3))
    losses = [train_step(encoder, optimizer, frames, target) for _ in range(num_steps)]
    encoder.eval()
    return losses


@pytest.mark.parametrize("row", TOWER_ROWS, ids=name_of)
def test_an_untrained_branch_returns_the_towers_own_frame_mean(row: TowerRow, clips: Any) -> None:
    clip = clips(row)
    encoder, frames = make_encoder(clip), make_frames(clip)
    with torch.no_grad():
        features = encoder(frames)
    assert relative_error(features, own_frame_mean(clip.model, encoder, frames)) < 1e-5
    assert relative_error(features[0], features[1]) > 1e-4  # the tower does depend on the frames


@pytest.mark.parametrize("row", TOWER_ROWS, ids=name_of)
def test_the_table_describes_the_tower(row: TowerRow, clips: Any) -> None:
    clip = clips(row)
    encoder = make_encoder(clip)
    tower, tokens = encoder.tower, encoder.compute_trunk(make_frames(clip)).tokens
    assert (type(tower).__name__, "copied" if tower.blocks else "new") == (row.adapter, row.blocks)
    num_pooled = len(range(*tower.pooled.indices(tokens.shape[2])))
    trunk = getattr(clip.model.visual, "trunk", None)
    num_prefix = getattr(trunk, "num_prefix_tokens", 1 if row.adapter == "OpenClipVit" else 0)
    expected = {
        "the CLS token, as in the paper": 1,
        "all patches, whose mean is pooled": tokens.shape[2] - num_prefix,
        "all tokens, pooled by attention": tokens.shape[2],
        "all positions of the last feature map": tokens.shape[2],
    }
    assert num_pooled == expected[row.tmp]
    new, copied = encoder.new_and_copied_parameters()
    assert bool(copied) == (row.blocks == "copied")
    assert {id(p) for p in (*new, *copied)} == {id(p) for p in encoder.trainable_parameters().values()}
    if row.text.startswith("refused"):
        with pytest.raises(ValueError, match="class token"):
            ClipText(clip.model, clip.tokenizer)
    else:
        assert len(ClipText(clip.model, clip.tokenizer).encode(["a label"])) == 1


@pytest.mark.parametrize("row", TOWER_ROWS, ids=name_of)
def test_training_reaches_every_parameter_of_the_branch_and_lowers_the_loss(row: TowerRow, clips: Any) -> None:
    clip = clips(row)
    encoder, frames = make_encoder(clip), make_frames(clip)
    losses = train(encoder, frames, num_steps=4)  # the last gradients are left in place
    assert losses[-1] < losses[0] - 1e-3
    without = [n for n, p in encoder.trainable_parameters().items() if p.grad is None or not p.grad.abs().any()]
    assert without == []
    assert all(p.grad is None for p in clip.model.parameters())
    with torch.no_grad():
        for block in encoder.branch:  # as after more steps
            block.temporal.out.weight.normal_(std=0.1)
        features = encoder(frames)
        assert relative_error(encoder(encoder.compute_trunk(frames)), features) < 1e-5
        assert relative_error(encoder(frames.flip(1)), features) > 1e-4  # the order of the frames matters
        folded = encoder(frames, alpha=0.4)
        encoder.fold(0.4)
        assert relative_error(encoder(frames), folded) < 1e-5


@pytest.mark.parametrize("row", TOWER_ROWS, ids=name_of)
def test_a_trained_branch_is_saved_and_served(row: TowerRow, clips: Any, tmp_path: Path) -> None:
    clip = clips(row)
    encoder, frames = make_encoder(clip), make_frames(clip)
    train(encoder, frames)
    config = CheckpointConfig(
        id=row.name, clip=replace(clip.source, digest=clip.digest), video=encoder.config, label=LabelEncoderConfig(),
        scorer=Scorer(10.0, -5.0), method="class_name", baseline=BaselineConfig(templates="name"),
    )  # fmt: skip
    tensors = {f"branch.{name}": value for name, value in encoder.trainable_parameters().items()}
    save_checkpoint(tmp_path, config, tensors, half=False)
    if row.text.startswith("refused"):
        with pytest.raises(ValueError, match="class token"):
            load_classifier(str(tmp_path), device="cpu")
        return
    classifier = load_classifier(str(tmp_path), device="cpu")
    served = classifier.encode_video([video.permute(0, 2, 3, 1).numpy() for video in frames])
    assert np.allclose(served, encoder.encode_video(frames).numpy(), atol=1e-5)


@pytest.mark.parametrize("row", TIMM, ids=name_of)
def test_a_timm_model_is_a_tower_without_open_clip(row: TowerRow) -> None:
    model = create_small_timm(row.name, num_classes=0).eval()
    mean, std, geometry = read_preprocessing(model)
    encoder = VideoEncoder(model, VideoEncoderConfig(num_branch_blocks=NUM_BLOCKS), mean=mean, std=std)
    side = min(geometry.image_size, 64)
    frames = torch.randint(0, 256, (2, 2, 3, side, side), dtype=torch.uint8)
    assert type(encoder.tower).__name__ == row.adapter
    with torch.no_grad():
        assert relative_error(encoder(frames), own_frame_mean(model, encoder, frames)) < 1e-5


def test_the_copied_blocks_have_no_dropout() -> None:
    model = create_small_timm("vit_base_patch16_siglip_224", num_classes=0, drop_path_rate=0.9, proj_drop_rate=0.9)
    encoder = VideoEncoder(model, VideoEncoderConfig(num_branch_blocks=NUM_BLOCKS), mean=(0.5,) * 3, std=(0.5,) * 3)
    frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert relative_error(encoder.train()(frames), encoder.eval()(frames)) < 1e-5


def test_preprocessing_is_the_models_own(clips: Any) -> None:
    model = create_small_timm("efficientnet_lite2", num_classes=0)
    mean, std, geometry = read_preprocessing(model)
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (geometry.image_size, geometry.resize_mode) == (260, "shortest")
    dino = create_small_timm("vit_small_patch14_reg4_dinov2", num_classes=0)
    assert read_preprocessing(dino).geometry.image_size == 56  # of the model, not of its published weights
    mean, std, geometry = read_preprocessing(clips(OPEN_CLIP[0]).model.visual)
    assert (mean, std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (geometry.image_size, geometry.resize_mode) == (64, "shortest")
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": (64, 32), "resize_mode": "squash"}
    with pytest.raises(ValueError, match="64 x 32"):
        read_preprocessing(SimpleNamespace(preprocess_cfg=config))
    squashed = read_preprocessing(SimpleNamespace(preprocess_cfg=config | {"size": 32}))
    assert squashed == ((0.5,) * 3, (0.5,) * 3, FrameGeometry(32, "squash"))


def test_a_stored_clip_with_a_timm_tower_is_served(clips: Any, tmp_path: Path) -> None:
    clip = clips(next(row for row in OPEN_CLIP if row.name == "PE-Core-B-16"))
    encoder, frames = make_encoder(clip), make_frames(clip)
    config = CheckpointConfig(
        id="stored", clip=replace(clip.source, source="stored", model_cfg=clip.model_cfg), video=encoder.config,
        label=LabelEncoderConfig(), scorer=Scorer(10.0, -5.0), method="class_name",
        baseline=BaselineConfig(templates="name"),
    )  # fmt: skip
    tensors = {f"branch.{name}": value for name, value in encoder.trainable_parameters().items()}
    tensors |= {f"clip.{name}": value for name, value in clip.model.state_dict().items()}
    save_checkpoint(tmp_path, config, tensors, half=False)
    classifier = load_classifier(str(tmp_path), device="cpu")
    assert isinstance(classifier, TorchClassifier)
    served = classifier.encode_video([video.permute(0, 2, 3, 1).numpy() for video in frames])
    assert np.allclose(served, encoder.encode_video(frames).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("visual", "reason"),
    [
        (torch.nn.Identity, "not Identity"),
        (lambda: timm.models.beit.Beit(img_size=32, embed_dim=32, depth=1, num_heads=2), "not Beit"),
        (lambda: create_small_timm("vit_base_patch16_siglip_224", global_pool=""), "does not pool"),
    ],
)
def test_towers_that_the_branch_does_not_fit_are_refused(visual: Any, reason: str) -> None:
    tower = visual()
    with pytest.raises(ValueError, match=reason):
        create_tower(tower)
    with pytest.raises(ValueError, match="num_branch_blocks=0"):
        VideoEncoder(tower, VideoEncoderConfig(num_branch_blocks=1), mean=(0.5,) * 3, std=(0.5,) * 3)
