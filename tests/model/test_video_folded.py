"""The folded EfficientNet-Lite against timm's own passes, and the choice of it."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from support.kernel import MOTION, SIDE, random_tower
from vidlex.model.config import KernelConfig, VideoEncoderConfig
from vidlex.model.packed_linear import cpu_supports_bfloat16
from vidlex.model.scoring import Scorer
from vidlex.model.video import folded_tower
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.folded_tower import FoldedEncoder, can_fold
from vidlex.model.video.precision import PlainVideoEncoder, choose_encoder
from vidlex.model.video.still_motion import StillMotionEncoder

PIXELS: Any = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def encoder_of(tower: Any, *, with_motion: bool = True) -> StillMotionEncoder:
    config = KernelConfig(motion=MOTION.to_json() if with_motion else None, num_channels=tower.num_features)
    torch.manual_seed(0)
    return StillMotionEncoder(tower, config, num_frames=3, **PIXELS)


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# "same" padding of TensorFlow depends on the size; efficientnet_lite0 pads equally
@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "efficientnet_lite0"])
@pytest.mark.parametrize("side", [64, 65, 70, 97])
@pytest.mark.parametrize("is_fused", [True, False])
def test_maps_are_the_tower_s(monkeypatch: pytest.MonkeyPatch, architecture: str, side: int, is_fused: bool) -> None:
    if not is_fused:
        monkeypatch.setattr(folded_tower, "_has_fused_operators", lambda _: False)
    encoder = encoder_of(random_tower(architecture))
    pictures = frames(3, 3, side, side)
    with torch.inference_mode():
        expected = encoder.run_tower(encoder.to_pixels(pictures))
        found = FoldedEncoder(encoder).run_tower(pictures)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.std() > 0.05
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def test_the_tower_s_pass_is_timm_s() -> None:
    encoder = encoder_of(random_tower())
    maps: list[torch.Tensor] = []
    encoder.visual.blocks[4].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        found = encoder.run_tower(pixels)
        features = encoder.visual.forward_features(pixels).mean((2, 3))
    assert torch.equal(found.features, features) and torch.equal(found.motion, maps[0]) and len(maps) == 2


@pytest.mark.parametrize("with_motion", [True, False])
def test_features_are_equal_for_any_number_of_frames(with_motion: bool) -> None:
    encoder = encoder_of(random_tower(), with_motion=with_motion)
    plain, folded = PlainVideoEncoder(encoder), FoldedEncoder(encoder)
    for b, t in ((1, 1), (2, 3), (1, 11)):
        some = frames(b, t, SIDE, SIDE, 3)
        torch.testing.assert_close(folded.encode_video(some), plain.encode_video(some), atol=1e-5, rtol=0)
    assert torch.allclose(folded.encode_video(some).norm(dim=1), torch.ones(1), atol=1e-6)


def test_it_is_chosen_and_verified() -> None:
    encoder = encoder_of(random_tower())
    chosen = choose_encoder(encoder, precision="float32", image_size=SIDE, scorer=Scorer(20.0))
    assert chosen.name in ("folded float32", "plain float32")  # the faster one, which is noise at this size
    assert chosen.cosine > 0.99999 and chosen.probability_change < 1e-4


def test_a_wrong_implementation_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded_tower._Convolution, "_paddings", lambda self, size: (self.kernel_size // 2,) * 2)
    encoder = encoder_of(random_tower())
    chosen = choose_encoder(encoder, precision="float32", image_size=SIDE, scorer=Scorer(100.0))
    assert chosen.name == "plain float32"


@pytest.mark.skipif(not cpu_supports_bfloat16(), reason="this CPU has no bfloat16 products")
def test_bfloat16_is_close() -> None:
    encoder = encoder_of(random_tower())
    some = frames(2, 3, SIDE, SIDE, 3)
    expected = PlainVideoEncoder(encoder).encode_video(some)
    found = FoldedEncoder(encoder, torch.bfloat16).encode_video(some)
    cosine = F.cosine_similarity(found, expected)
    assert found.dtype == torch.float32 and cosine.min() > 0.99 and not torch.equal(found, expected)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "efficientnet_b0", "mobilenetv2_050"])
def test_other_towers_run_as_they_are(architecture: str) -> None:
    """With squeeze-and-excitation, another activation, another kind of block."""
    tower: Any = timm.create_model(architecture, pretrained=False).eval()
    is_lite = architecture == "mobilenetv2_050"  # an EfficientNet of timm with the same blocks
    encoder = encoder_of(tower, with_motion=False)
    assert can_fold(encoder) == is_lite
    if not is_lite:
        with pytest.raises(ValueError, match="not an EfficientNet-Lite"):
            FoldedEncoder(encoder)
    feature = PlainVideoEncoder(encoder).encode_video(frames(1, 2, 64, 64, 3))
    assert torch.allclose(feature.norm(dim=1), torch.ones(1), atol=1e-6)


def test_an_encoder_of_another_kind_is_not_folded() -> None:
    other = VideoEncoder(nn.Flatten(), VideoEncoderConfig(num_branch_blocks=0), **PIXELS)
    assert not can_fold(other)
    with pytest.raises(ValueError, match="must be an EfficientNet"):
        StillMotionEncoder(nn.Flatten(), KernelConfig(), num_frames=3, **PIXELS)
