"""PE-AV against transformers' own features and probabilities."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PeAudioVideoModel, PeVideoVideoProcessor

from support.pretrained import SIDE, random_videos, tiny_pe_av
from vidlex.model.baselines.class_name import TEMPLATES
from vidlex.model.classifier import LabelTextError
from vidlex.model.factory import load_classifier
from vidlex.model.specs import ModelNotFound

NAMES = ["dog", "a red car that turns left"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PeAudioVideoModel]:
    folder = tmp_path_factory.mktemp("pe_av")
    return folder, tiny_pe_av(folder)


@pytest.fixture
def folder(own: tuple[Path, PeAudioVideoModel]) -> Path:
    return own[0]


def own_outputs(own: tuple[Path, PeAudioVideoModel], videos: list[Any], texts: list[str]) -> Any:
    """Of the whole model, which also wants a sound for each video, and as many texts as videos."""
    folder, model = own
    pixels = PeVideoVideoProcessor.from_pretrained(folder)(videos, return_tensors="pt", do_sample_frames=False)
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    sound = torch.zeros(len(videos), 1, 64)
    with torch.no_grad():
        return model(**pixels, **tokens, input_values=sound)


@pytest.mark.parametrize("length", [6, 2])
def test_features_equal_transformers_own(own: Any, folder: Path, length: int) -> None:
    """Up to the factor, and without the added coordinate, that make a video's vector a unit vector."""
    classifier = load_classifier(f"transformers+name:{folder}", device="cpu")
    videos = random_videos(length, length)
    expected = own_outputs(own, videos, NAMES)
    model = classifier.video.visual  # type: ignore[attr-defined]
    features = classifier.encode_video(videos)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    for vectors, bound, vectors_own in (
        (features, model._max_video_length, expected.video_embeds),
        (classifier.encode_labels(NAMES), model._max_text_length, expected.text_video_embeds),
    ):
        assert np.allclose(vectors[:, :-1], vectors_own / bound, atol=1e-5)
        assert np.allclose(vectors[:, :-1] * bound, vectors_own, rtol=1e-4, atol=1e-5)
        assert 0.1 < vectors_own.norm(dim=-1).max() / bound < 1, "the bound is not far from what occurs"
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_probabilities_are_the_models_own(own: Any, folder: Path) -> None:
    """The vectors are not normalised: labels with longer vectors have higher scores."""
    classifier = load_classifier(f"transformers+name:{folder}", device="cpu")
    videos = random_videos(6, 6)
    expected = own_outputs(own, videos, NAMES).logits_video_text.sigmoid()
    similarities = classifier.encode_video(videos) @ classifier.encode_labels(NAMES).T
    assert np.allclose(classifier.scorer.probability(similarities), expected, atol=1e-4)
    assert expected.std() > 0.01


def test_the_logit_of_templates_is_their_mean(own: Any, folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    videos = random_videos(6, 6, 6)
    texts = [template.format("dog") for template in TEMPLATES["default"]]
    expected = own_outputs(own, videos, texts).logits_video_text.mean(dim=1, keepdim=True)
    similarities = classifier.encode_video(videos) @ classifier.encode_labels(["dog"]).T
    assert np.allclose(classifier.scorer.logit(similarities), expected, atol=1e-3)


def test_videos_of_any_length_share_a_call(folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    assert (classifier.num_frames, classifier.geometry.image_size) == (6, SIDE)
    videos = random_videos(6, 1, 9, 6)
    together = classifier.encode_video(videos)
    for video, feature in zip(videos, together, strict=True):
        assert np.allclose(classifier.encode_video([video])[0], feature, atol=1e-5)


def test_the_audio_part_is_not_kept(folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    names = [name for name, _ in classifier.video.named_parameters()]  # type: ignore[attr-defined]
    assert names and not [name for name in names if "audio" in name]


def test_the_video_model_alone_is_the_same(own: tuple[Path, PeAudioVideoModel], tmp_path: Path) -> None:
    folder, model = own
    model.video_model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json"):
        shutil.copy(folder / name, tmp_path)
    alone, whole = (load_classifier(f"transformers:{path}", device="cpu") for path in (tmp_path, folder))
    assert alone.info()["model_type"] == "pe_video"
    videos = random_videos(6, 6)
    assert np.allclose(alone.encode_video(videos), whole.encode_video(videos), atol=1e-6)
    assert np.allclose(alone.encode_labels(NAMES), whole.encode_labels(NAMES), atol=1e-6)
    assert alone.scorer == whole.scorer


def test_a_text_that_does_not_fit_is_an_error(folder: Path) -> None:
    classifier = load_classifier(f"transformers+name:{folder}", device="cpu")
    classifier.check_label("x" * 47)
    with pytest.raises(LabelTextError, match="49 tokens, at most 48 fit"):
        classifier.check_label("x" * 48)


def test_an_untrained_logit_scale_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith("text_video_logit_scale") and "plus" not in name]
    save_file(tensors | {name: torch.zeros(1)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match="text_video_logit_scale is 0"):
        load_classifier(f"transformers:{copy}", device="cpu")
