"""The fast video encoder equals the plain one in float32, is close in half precision, and is verified before use."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.video_encoder import MEAN, SIDE, STD, make_encoder
from vidlex.model import factory
from vidlex.model.config import VideoEncoderConfig
from vidlex.model.extensions.name_trust import concat_frame_mean
from vidlex.model.factory import load_classifier
from vidlex.model.scoring import Calibration, Scorer
from vidlex.model.video import precision as precisions
from vidlex.model.video.cuda_graphs import GraphedVideoEncoder
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.fast_encoder import FastVideoEncoder, can_be_fast
from vidlex.model.video.precision import PlainVideoEncoder, choose_encoder, max_differences, probe_videos

SCORER = Scorer(logit_scale=20.0, logit_bias=-5.0, calibration=Calibration(slope=1.0))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def random_videos(num_videos: int = 3, num_frames: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num_videos, num_frames, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("blocks", [0, 1, 2, 4])
@pytest.mark.parametrize("tower", [{}, {"quick_gelu": True}, {"ls_init_value": 0.3}, {"no_ln_pre": True}])
def test_float32_equals_the_plain_encoder(blocks: int, tower: dict[str, Any]) -> None:
    encoder = make_encoder(blocks, **tower)
    videos = random_videos()
    before = videos.clone()
    fast = FastVideoEncoder(encoder)
    expected = PlainVideoEncoder(encoder).encode_video(videos)
    assert torch.allclose(fast.encode_video(videos), expected, atol=2e-6)
    assert torch.allclose(fast.encode_video(videos), expected, atol=2e-6)  # no state is left
    assert torch.equal(videos, before)


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_frame_mean_is_appended_to_the_branch_feature(blocks: int) -> None:
    encoder, videos = make_encoder(blocks), random_videos()
    branch = PlainVideoEncoder(encoder).encode_video(videos)
    pictures = encoder.to_pixels(videos.permute(0, 1, 4, 2, 3)).flatten(0, 1)
    with torch.no_grad():
        mean = encoder.visual(pictures).view(*videos.shape[:2], -1).mean(dim=1)
    encoder.head = concat_frame_mean
    for implementation in (PlainVideoEncoder(encoder), FastVideoEncoder(encoder)):
        features = implementation.encode_video(videos)
        assert torch.allclose(features[:, :24] * 2**0.5, branch, atol=3e-6)
        assert torch.allclose(features[:, 24:] * 2**0.5, nn.functional.normalize(mean, dim=-1), atol=3e-6)
        assert torch.allclose(features.norm(dim=1), torch.ones(len(videos)), atol=1e-5)
    assert (branch - features[:, 24:] * 2**0.5).abs().max() > 0.01 or not blocks


def test_passes_of_few_frames_give_the_same_features() -> None:
    fast = FastVideoEncoder(make_encoder())
    videos = random_videos(num_videos=4, num_frames=7)
    expected = fast.encode_video(videos)
    fast.max_frames_per_pass = 3
    assert torch.allclose(fast.encode_video(videos), expected, atol=2e-6)


def test_one_frame_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(quick_gelu=True)
    videos = random_videos(num_videos=1, num_frames=1)
    expected = PlainVideoEncoder(encoder).encode_video(videos)
    assert torch.allclose(FastVideoEncoder(encoder).encode_video(videos), expected, atol=2e-6)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for other in (encoder, make_encoder()):
        plain = PlainVideoEncoder(other).encode_video(videos)
        assert torch.allclose(FastVideoEncoder(other).encode_video(videos), plain, atol=2e-6)


def test_bfloat16_is_close() -> None:
    encoder = make_encoder()
    videos = random_videos()
    expected = PlainVideoEncoder(encoder).encode_video(videos)
    features = FastVideoEncoder(encoder, torch.bfloat16).encode_video(videos)
    cosine, change = max_differences(expected, features, SCORER)
    assert features.dtype == torch.float32
    assert 0.999 <= cosine < 1 + 1e-6
    assert 0 < change < 0.05


def test_other_towers_use_the_plain_encoder() -> None:
    assert not can_be_fast(make_encoder(0, pool_type="avg"))
    assert not can_be_fast(make_encoder(0, attentional_pool=True, attn_pooler_heads=4))
    other = VideoEncoder(nn.Flatten(), VideoEncoderConfig(num_branch_blocks=0), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="Flatten"):
        FastVideoEncoder(other)
    chosen = choose_encoder(other, precision="float32", image_size=SIDE, scorer=SCORER)
    assert (chosen.name, chosen.cosine) == ("plain float32", 1.0)


def test_an_interpolated_branch_must_be_folded_first() -> None:
    encoder = make_encoder()
    encoder.fold_alpha = 0.5
    with pytest.raises(ValueError, match="fold"):
        FastVideoEncoder(encoder)


def test_max_differences_bound_the_change_of_a_probability() -> None:
    """Two unit vectors that differ by 0.02 in the direction of a label at the steepest point of the sigmoid."""
    first = torch.tensor([[1.0, 0.0, 0.0]])
    second = nn.functional.normalize(torch.tensor([[1.0, 0.02, 0.0]]), dim=-1)
    cosine, change = max_differences(first, second, Scorer(40.0, 0.0, Calibration(slope=0.5)))
    assert cosine == pytest.approx(0.9998, abs=1e-5)
    above, below = Scorer(40.0, 0.0, Calibration(slope=0.5)).probability(np.array([0.01, -0.01]))
    assert 0.5 * (above - below) < change <= (above - below) * 1.01
    assert max_differences(first, first, SCORER)[1] == 0


def test_probe_videos_are_distinct_and_deterministic() -> None:
    videos = probe_videos(SIDE)
    assert videos.shape == (4, 2, SIDE, SIDE, 3) and videos.dtype == torch.uint8
    assert torch.equal(videos, probe_videos(SIDE))
    assert len({bytes(video.numpy()) for video in videos}) == 4


def test_auto_chooses_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "cpu_supports_bfloat16", lambda: True)
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(
        precisions, "_measure_seconds", lambda e, _: seconds[e.dtype] - 0.1 * isinstance(e, FastVideoEncoder)
    )
    encoder, scorer = make_encoder(), Scorer(1.0)

    def chosen(precision: Any) -> str:
        return choose_encoder(encoder, precision=precision, image_size=SIDE, scorer=scorer).name

    assert chosen("auto") == "fast bfloat16"
    assert chosen("float32") == "fast float32"
    seconds[torch.bfloat16] = 0.95
    assert chosen("auto") == "fast float32"  # too little faster for a lower precision
    assert chosen("bfloat16") == "fast bfloat16"
    assert chosen("float16") == "fast float32"  # not available on a CPU
    monkeypatch.setattr(precisions, "cpu_supports_bfloat16", lambda: False)
    seconds[torch.bfloat16] = 0.1
    assert chosen("auto") == chosen("bfloat16") == "fast float32"  # not a candidate


@pytest.mark.parametrize("fault", ["wrong", "nan", "fails"])
def test_an_encoder_that_fails_verification_is_rejected(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = FastVideoEncoder.encode_video

    def broken(self: FastVideoEncoder, frames: Tensor) -> Tensor:
        if fault == "fails":
            raise RuntimeError("could not create a primitive")
        features = real(self, frames)
        return features.roll(1, dims=1) if fault == "wrong" else features * float("nan")

    monkeypatch.setattr(FastVideoEncoder, "encode_video", broken)
    monkeypatch.setattr(precisions, "cpu_supports_bfloat16", lambda: True)
    with caplog.at_level(logging.WARNING):
        chosen = choose_encoder(make_encoder(), precision="bfloat16", image_size=SIDE, scorer=SCORER)
    assert chosen.name == "plain float32"
    assert "fast bfloat16" in caplog.text and "using plain float32" in caplog.text


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "cpu_supports_bfloat16", lambda: True)
        patch.setattr(precisions, "load_choice", lambda _: None)
        patch.setattr(precisions, "save_choice", lambda *_: None)
        patch.setattr(factory, "load_llm", cache(factory.load_llm))  # loaded and packed once for both
        return {name: load_classifier("emoji-small", device="cpu", precision=name) for name in ("float32", "bfloat16")}


def test_scores_of_the_shipped_checkpoint_hold_in_half_precision(shipped: dict[str, Any]) -> None:
    names = ["dog", "fruit", "car", "spinning", "growing", "a beach", "puppy", "vehicle"]
    labels = shipped["float32"].encode_labels(names)
    videos = [frames.numpy() for frames in probe_videos(96)] + [np.zeros((8, 96, 96, 3), np.uint8)]
    exact, half = (shipped[name].encode_video(videos) for name in ("float32", "bfloat16"))
    plain = PlainVideoEncoder(shipped["float32"].video)
    expected = np.concatenate([plain.encode_video(torch.from_numpy(video)[None]).numpy() for video in videos])
    assert np.abs(exact - expected).max() < 1e-5
    assert "bfloat16" in shipped["bfloat16"].info()["encoder"]
    assert (half * expected).sum(axis=1).min() >= 0.999
    score = shipped["float32"].scorer.probability
    assert np.abs(score(half @ labels.T) - score(expected @ labels.T)).max() <= 0.01


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_is_close_with_and_without_graphs(dtype: torch.dtype) -> None:
    encoder = make_encoder(device="cuda")
    expected = PlainVideoEncoder(make_encoder()).encode_video(random_videos())
    fast = FastVideoEncoder(encoder, dtype)
    graphed = GraphedVideoEncoder(fast)
    for run in (fast.encode_video, *[graphed.encode_video] * 3):
        features = run(random_videos().cuda())
        assert nn.functional.cosine_similarity(features.cpu(), expected).min() >= 0.999


@needs_cuda
def test_cuda_graphs_do_not_mix_up_videos() -> None:
    graphed = GraphedVideoEncoder(FastVideoEncoder(make_encoder(device="cuda"), torch.float16))
    first, second = random_videos(1).cuda(), probe_videos(SIDE)[:1].repeat(1, 3, 1, 1, 1)[:, :5].cuda()
    eager = [graphed.encode_video(v) for v in (first, second)]
    replayed = [graphed.encode_video(v) for v in (first, second, first)]
    assert torch.allclose(replayed[0], replayed[2]) and torch.allclose(replayed[0], eager[0], atol=1e-2)
    assert torch.allclose(replayed[1], eager[1], atol=1e-2) and not torch.allclose(replayed[0], replayed[1], atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "auto"])
def test_cuda_verifies_half_precision_for_the_shipped_checkpoint(precision: Any) -> None:
    kind, chosen = load_classifier("emoji-small", device="cuda", precision=precision).info()["encoder"].split()
    # "auto" may choose float32 on a GPU under load
    assert kind in ("fast", "graphed") and precision in (chosen, "auto")


def test_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        GraphedVideoEncoder(FastVideoEncoder(make_encoder()))


def test_the_choice_is_measured_once_and_verified_at_each_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIDLEX_CACHE_DIR", str(tmp_path))
    timed: list[object] = []
    measure = precisions._measure_seconds

    def counted(encoder: Any, frames: Tensor) -> float:
        timed.append(encoder)
        return measure(encoder, frames)

    def choose(fingerprint: str = "f") -> str:
        timed.clear()
        return choose_encoder(encoder, precision="auto", image_size=SIDE, scorer=SCORER, fingerprint=fingerprint).name

    encoder = make_encoder()
    monkeypatch.setattr(precisions, "_measure_seconds", counted)
    first = choose()
    assert timed
    monkeypatch.setattr(precisions, "_measure_seconds", None)  # another measurement would fail
    assert choose() == choose() == first
    (path,) = (tmp_path / "encoders").glob("*.json")
    assert json.loads(path.read_text())["encoder"] == first

    monkeypatch.setattr(precisions, "_measure_seconds", counted)
    choose("another model")
    assert timed
    path.write_text("broken")
    choose()
    assert timed and json.loads(path.read_text())["encoder"]

    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"encoder": "plain float32"}))
    assert choose() == "plain float32" and not timed
    path.write_text(json.dumps(stored | {"encoder": "fast float32"}))
    assert choose() == "fast float32" and not timed
    monkeypatch.setattr(precisions, "MIN_COSINE", 1.1)  # only the plain encoder passes
    assert choose() == "plain float32" and timed
