"""CLIP, SigLIP and SigLIP 2 against transformers' own features of the same frames and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from support.pretrained import MEAN, SIDE, WRITERS, random_videos
from vidlex.model.baselines.class_name import TEMPLATES
from vidlex.model.classifier import LabelTextError
from vidlex.model.factory import load_classifier
from vidlex.model.pretrained.image_text import NaflexModel

NAMES = ["dog", "a red car"]


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def own(folder: Path) -> tuple[Any, Any, Any]:
    model = AutoModel.from_pretrained(folder).eval()
    return model, AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def text_inputs(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, padding="max_length", max_length=48, return_tensors="pt")


def test_features_equal_transformers_own(folder: Path, own: tuple[Any, Any, Any]) -> None:
    model, processor, tokenizer = own
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    side = classifier.geometry.image_size
    videos = random_videos(3, 1, 3, 5, side=side)
    features = classifier.encode_video(videos)
    assert features.shape == (4, classifier.dim)
    with torch.no_grad():
        for video, feature in zip(videos, features, strict=True):
            inputs = processor([Image.fromarray(frame) for frame in video], return_tensors="pt")
            expected = F.normalize(model.get_image_features(**inputs).pooler_output.mean(dim=0), dim=0)
            assert np.allclose(feature, expected, atol=1e-5)
        labels = classifier.encode_labels(NAMES)
        for name, label in zip(NAMES, labels, strict=True):
            texts = [template.format(name) for template in TEMPLATES["default"]]
            units = F.normalize(model.get_text_features(**text_inputs(model, tokenizer, texts)).pooler_output, dim=-1)
            assert np.allclose(label, F.normalize(units.mean(dim=0), dim=0), atol=1e-5)
    assert np.abs(features[0] - features[2]).max() > 0.01
    assert np.abs(labels[0] - labels[1]).max() > 0.01


def test_a_picture_has_the_models_own_probability(folder: Path, own: tuple[Any, Any, Any]) -> None:
    """CLIP has no probability for a single pair: its logit is compared."""
    model, processor, tokenizer = own
    classifier = load_classifier(f"transformers+name:{folder}", device="cpu")
    (video,) = random_videos(1, side=classifier.geometry.image_size)
    with torch.no_grad():
        inputs = dict(processor([Image.fromarray(video[0])], return_tensors="pt"))
        logits = model(**inputs, **text_inputs(model, tokenizer, NAMES)).logits_per_image[0].numpy()
    similarity = classifier.encode_video([video])[0] @ classifier.encode_labels(NAMES).T
    if hasattr(model, "logit_bias"):
        assert np.allclose(classifier.scorer.probability(similarity), 1 / (1 + np.exp(-logits)), atol=1e-5)
    else:
        assert np.allclose(similarity * classifier.scorer.logit_scale, logits, atol=1e-4)
        assert classifier.scorer.probability(np.array([0.25]))[0] == pytest.approx(0.5)


def test_settings_of_the_model_are_read(folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    kind = classifier.info()["model_type"]
    assert classifier.geometry.image_size == {"clip": SIDE + 4, "siglip": SIDE, "siglip2": 2 * 8}[kind]
    assert classifier.geometry.resize_mode == {"clip": "shortest", "siglip": "squash", "siglip2": "shortest"}[kind]
    video: Any = classifier.video  # type: ignore[attr-defined]
    assert video.crop_size == SIDE
    expected = MEAN if kind == "clip" else [0.5] * 3
    assert np.allclose(video.mean.flatten() / 255, expected)


def test_a_text_that_does_not_fit_is_an_error(folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    num_special = {"clip": 2, "siglip": 1, "siglip2": 1}[classifier.info()["model_type"]]
    longest = "x" * (48 - num_special - len("a photo of a ."))  # one token per letter, no spaces for CLIP
    if num_special == 2:
        longest += "x" * 4
    classifier.check_label(longest)
    for encode in (
        classifier.encode_labels,
        classifier.describe_labels,
        lambda names: classifier.check_label(names[0]),
    ):
        with pytest.raises(LabelTextError, match="too long"):
            encode([longest + "x"])
    special = "<|endoftext|>" if num_special == 2 else "<ctl>"
    for name, message in ((f"dog {special}", "reserved"), ("", "empty")):
        with pytest.raises(LabelTextError, match=message):
            classifier.check_label(name)


def test_patches_equal_the_processors(tmp_path: Path) -> None:
    """Without padding to the maximum number of patches."""
    folder = WRITERS["siglip2"](tmp_path)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    (frames,) = random_videos(2)
    inputs = processor(list(frames), return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 5, 8 * 8 * 3)
    assert inputs["pixel_attention_mask"][0].tolist() == [1, 1, 1, 1, 0]
    seen: dict[str, Any] = {}
    model.get_image_features = lambda **given: seen.update(given) or type("Output", (), {"pooler_output": None})
    NaflexModel(model).encode_frames(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(seen["pixel_values"], inputs["pixel_values"][:, :4], atol=1e-6)
    assert torch.equal(seen["spatial_shapes"], inputs["spatial_shapes"])
