"""The language model's precision: decided when training starts, kept in the checkpoint, the same wherever it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from support.tiny import tiny_clip, write_llm
from vidlex.model.checkpoint import CheckpointConfig, ClipSource, load_checkpoint, save_checkpoint
from vidlex.model.config import LabelEncoderConfig, LlmDtype, VideoEncoderConfig
from vidlex.model.factory import Clip, create_label_encoder
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry

SOURCE = ClipSource("stored", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), FrameGeometry(image_size=16), {"embed_dim": 12})


def test_auto_is_decided_by_the_device():
    auto = LabelEncoderConfig()
    assert [auto.for_device(device).llm_dtype for device in ("cpu", "mps", "cuda", "cuda:1")] == [
        "float32", "float32", "bfloat16", "bfloat16",
    ]  # fmt: skip
    fixed = replace(auto, llm_dtype="float32")
    assert fixed.for_device("cuda") == fixed
    with pytest.raises(ValueError, match="unknown llm_dtype 'float16': auto, float32, bfloat16"):
        replace(auto, llm_dtype="float16")


def test_only_bfloat16_changes_a_stored_configuration():
    auto = LabelEncoderConfig()
    full, half = auto.for_device("cpu"), auto.for_device("cuda")
    assert "llm_dtype" not in full.to_dict() and half.to_dict() == {**full.to_dict(), "llm_dtype": "bfloat16"}
    assert LabelEncoderConfig.from_dict(full.to_dict()) == full  # as in checkpoints that are older than the field
    assert LabelEncoderConfig.from_dict(half.to_dict()) == half


def test_the_encoder_has_the_decided_precision(tmp_path):
    clip = Clip(*tiny_clip(), SOURCE, {})
    config = LabelEncoderConfig(llm=str(write_llm(tmp_path)), prompting_width=16, prompting_heads=2)
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        encoder, folder = create_label_encoder(config, clip, device)
        assert encoder.llm.dtype == dtype and folder == encoder.llm.folder == tmp_path
        assert encoder.config == config.for_device(device)
        restored, _ = create_label_encoder(LabelEncoderConfig.from_dict(encoder.config.to_dict()), clip)  # anywhere
        assert restored.llm.dtype == dtype
    assert create_label_encoder(config, clip)[0].llm.dtype == torch.float32


def test_the_fingerprint_differs(tmp_path):
    def config(llm_dtype: LlmDtype) -> CheckpointConfig:
        label = LabelEncoderConfig(llm_dtype=llm_dtype)
        return CheckpointConfig("tiny", SOURCE, VideoEncoderConfig(), label, Scorer(15.0, -7.0))

    save_checkpoint(tmp_path, config("auto"), {"label.prefixes": torch.zeros(2)}, half=False)
    loaded = {}
    for llm_dtype in get_args(LlmDtype):
        (tmp_path / "config.json").write_text(config(llm_dtype).to_json())
        restored, _, fingerprint = load_checkpoint(tmp_path)
        loaded[llm_dtype] = (restored.label.llm_dtype, fingerprint)
    assert [dtype for dtype, _ in loaded.values()] == ["float32", "float32", "bfloat16"]
    assert loaded["auto"] == loaded["float32"] and loaded["bfloat16"][1] != loaded["float32"][1]
