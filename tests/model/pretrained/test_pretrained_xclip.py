"""X-CLIP against transformers' own features, without its video-specific prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoTokenizer, XCLIPModel

from support.pretrained import SIDE, random_videos, write_xclip
from vidlex.model.factory import load_classifier
from vidlex.model.pretrained.video import spread

NAMES = ["dog", "a red car"]
NUM_FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xclip(tmp_path_factory.mktemp("xclip"))


def test_features_equal_transformers_own(folder: Path) -> None:
    classifier = load_classifier(f"transformers+photo:{folder}", device="cpu")
    assert (classifier.num_frames, classifier.geometry.image_size) == (NUM_FRAMES, SIDE)
    videos = random_videos(NUM_FRAMES, NUM_FRAMES)
    model, processor = XCLIPModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    pixels = torch.stack([processor(list(video), return_tensors="pt")["pixel_values"] for video in videos])
    texts = [f"a photo of a {name}." for name in NAMES]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        video = F.normalize(model.get_video_features(pixels).pooler_output, dim=-1)
        text = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        whole = model(pixel_values=pixels, **tokens)
    features, labels = classifier.encode_video(videos), classifier.encode_labels(NAMES)
    assert np.allclose(features, video, atol=1e-5)
    assert np.allclose(features, whole.video_embeds, atol=1e-5)
    assert np.allclose(labels, text, atol=1e-5)
    assert classifier.scorer.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    # with its prompts a label has another vector for each video
    assert not torch.allclose(whole.text_embeds[0], whole.text_embeds[1], atol=1e-3)


def test_another_number_of_frames_is_brought_to_the_models(folder: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    videos = random_videos(1, 4, 9)
    together = classifier.encode_video(videos)
    for video, feature in zip(videos, together, strict=True):
        chosen = video[spread(len(video), NUM_FRAMES)]
        assert np.allclose(classifier.encode_video([chosen])[0], feature, atol=1e-5)
