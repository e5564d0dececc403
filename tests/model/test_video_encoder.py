"""The video encoder against open_clip's outputs."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.temporal import NUM_TIME_POSITIONS, interpolate_time_embedding

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def small_clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()


def make(clip: open_clip.CLIP, blocks: int) -> VideoEncoder:
    return VideoEncoder(clip.visual, VideoEncoderConfig(num_branch_blocks=blocks), mean=MEAN, std=STD)


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 256, (3, 5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def frame_mean(clip: open_clip.CLIP, encoder: VideoEncoder, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return clip.encode_image(encoder.to_pixels(frames).flatten(0, 1)).view(*frames.shape[:2], -1).mean(dim=1)


def perturb(encoder: VideoEncoder) -> None:
    """Change every trainable parameter, as training does."""
    with torch.no_grad():
        for p in encoder.trainable_parameters().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)


def test_pixels_are_normalised_as_in_open_clip(frames: Tensor) -> None:
    clip = small_clip()
    expected = (frames.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(make(clip, 0).to_pixels(frames), expected, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 1, 2, 4])
def test_an_untrained_branch_returns_the_frame_mean(blocks: int, frames: Tensor) -> None:
    clip = small_clip()
    encoder = make(clip, blocks)
    assert torch.allclose(encoder(frames), frame_mean(clip, encoder, frames), atol=1e-5)


def test_frame_features_equal_encode_image(frames: Tensor) -> None:
    clip = small_clip()
    encoder = make(clip, 2)
    pixels = encoder.to_pixels(frames).flatten(0, 1)
    with torch.no_grad():
        assert torch.allclose(encoder._run_tower(pixels)[0], clip.encode_image(pixels), atol=1e-5)


def test_alpha_zero_uses_clips_spatial_weights(frames: Tensor) -> None:
    clip = small_clip()
    trained = make(clip, 2)
    with torch.no_grad():
        for block in trained.branch:
            for p in block.spatial.parameters():
                p.add_(1.0)
    assert torch.allclose(trained(frames, alpha=0.0), frame_mean(clip, trained, frames), atol=1e-5)
    assert not torch.allclose(trained(frames, alpha=1.0), frame_mean(clip, trained, frames), atol=1e-2)


def test_fold_does_not_change_features(frames: Tensor) -> None:
    encoder = make(small_clip(), 2)
    perturb(encoder)
    with torch.no_grad():
        before = encoder(frames, alpha=0.4)
        encoder.fold(0.4)
        assert torch.allclose(encoder(frames), before, atol=1e-5)


def test_interpolation_scales_the_gradient_by_alpha(frames: Tensor) -> None:
    """Where trained and frozen weights are equal, the gradient is exactly alpha times the plain one."""
    encoder = make(small_clip(), 1)
    with torch.no_grad():  # the branch must differ from CLIP to have a gradient
        encoder.branch[0].temporal.out.weight.normal_(std=0.1)
    weight = encoder.branch[0].spatial.block.attn.in_proj_weight
    (full,) = torch.autograd.grad(encoder(frames, alpha=1.0).square().sum(), weight)
    (part,) = torch.autograd.grad(encoder(frames, alpha=0.3).square().sum(), weight)
    assert torch.allclose(part, 0.3 * full, atol=1e-4 * float(full.abs().max()))


def test_gradients_reach_only_the_branch(frames: Tensor) -> None:
    clip = small_clip()
    encoder = make(clip, 2)
    perturb(encoder)
    encoder(frames).square().sum().backward()
    assert all(p.grad is None for p in clip.parameters())
    parameters = encoder.trainable_parameters()
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().any()] == []


def test_frame_order_matters_only_with_a_trained_branch(frames: Tensor) -> None:
    encoder = make(small_clip(), 2)
    with torch.no_grad():
        assert torch.allclose(encoder(frames), encoder(frames.flip(1)), atol=1e-5)
        perturb(encoder)
        assert not torch.allclose(encoder(frames), encoder(frames.flip(1)), atol=1e-3)


def test_a_batch_equals_one_by_one(frames: Tensor) -> None:
    encoder = make(small_clip(), 2)
    perturb(encoder)
    alone = torch.cat([encoder.encode_video(frames[i : i + 1]) for i in range(3)])
    assert torch.allclose(encoder.encode_video(frames), alone, atol=1e-5)
    assert torch.allclose(alone.norm(dim=-1), torch.ones(3), atol=1e-5)


def test_time_embedding_is_interpolated() -> None:
    table = torch.arange(NUM_TIME_POSITIONS, dtype=torch.float32)[:, None]
    assert torch.equal(interpolate_time_embedding(table, NUM_TIME_POSITIONS), table)
    assert torch.allclose(interpolate_time_embedding(table, 1), torch.tensor([[(NUM_TIME_POSITIONS - 1) / 2]]))
    assert torch.allclose(interpolate_time_embedding(table, 2)[:, 0], torch.tensor([7.5, 23.5]))


def test_a_branch_requires_a_deep_enough_vision_transformer() -> None:
    clip = small_clip()
    with pytest.raises(ValueError, match="only 4 blocks"):
        make(clip, 5)
    with pytest.raises(ValueError, match="num_branch_blocks=0"):
        VideoEncoder(torch.nn.Identity(), VideoEncoderConfig(num_branch_blocks=1), mean=MEAN, std=STD)
