"""VideoPrism against transformers' own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    LlavaOnevisionVideoProcessor,
    VideoPrismClipModel,
    VideoPrismProcessor,
)

from support.pretrained import SIDE, random_videos, write_videoprism
from vidlex.model.classifier import LabelTextError
from vidlex.model.factory import load_classifier
from vidlex.model.pretrained import video
from vidlex.model.pretrained.video import spread

NAMES = ["dog", "a red car"]
NUM_FRAMES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videoprism(tmp_path_factory.mktemp("videoprism"))


def own_outputs(folder: Path, videos: list[Any]) -> Any:
    processor = VideoPrismProcessor(
        LlavaOnevisionVideoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )
    texts = processor(text=[f"a photo of a {name}." for name in NAMES], max_length=48, return_tensors="pt")
    size = {"height": SIDE, "width": SIDE}
    pixels = processor(videos=videos, size=size, do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        return VideoPrismClipModel.from_pretrained(folder).eval()(**pixels, **texts)


def test_features_equal_transformers_own(folder: Path) -> None:
    classifier = load_classifier(f"transformers+photo:{folder}", device="cpu")
    videos = random_videos(NUM_FRAMES, NUM_FRAMES)
    expected = own_outputs(folder, videos)
    features, labels = classifier.encode_video(videos), classifier.encode_labels(NAMES)
    assert np.allclose(features, F.normalize(expected.video_embeds, dim=-1), atol=1e-5)
    assert np.allclose(labels, F.normalize(expected.text_embeds, dim=-1), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.01
    assert np.abs(labels[0] - labels[1]).max() > 0.01


def test_scores_of_a_label_do_not_depend_on_the_others(folder: Path) -> None:
    """Unlike the model's own logits."""
    classifier = load_classifier(f"transformers+photo:{folder}", device="cpu")
    videos = random_videos(NUM_FRAMES, NUM_FRAMES)
    own_alone, own_both = (own_outputs(folder, part).logits_per_video[0] for part in (videos[:1], videos))
    assert not torch.allclose(own_alone, own_both, atol=0.1)
    one, both = (classifier.encode_video(videos[:1]) @ classifier.encode_labels(part).T for part in (NAMES[:1], NAMES))
    assert np.allclose(one[:, 0], both[:, 0], atol=1e-6)


@pytest.mark.parametrize("length", [1, 3, 12])
def test_another_number_of_frames_is_brought_to_the_models(folder: Path, length: int) -> None:
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    assert classifier.num_frames == NUM_FRAMES
    (frames,) = random_videos(length)
    chosen = frames[spread(length, NUM_FRAMES)]
    assert np.allclose(classifier.encode_video([frames]), classifier.encode_video([chosen]), atol=1e-6)


def test_memory_is_bounded_by_the_frames_that_the_model_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier: Any = load_classifier(f"transformers:{folder}", device="cpu")
    videos = random_videos(1, 1, 1, 1)
    expected = classifier.encode_video(videos)
    sizes = []
    encode_pixels = classifier.video.visual.encode_pixels
    monkeypatch.setattr(classifier.video.visual, "encode_pixels", lambda x: sizes.append(len(x)) or encode_pixels(x))
    monkeypatch.setattr(video, "MAX_FRAMES", 3 * NUM_FRAMES)
    assert np.allclose(classifier.encode_video(videos), expected, atol=1e-6)
    assert sizes == [3, 1]


def test_frames_are_chosen_evenly() -> None:
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(12, 4) == [1, 4, 7, 10]
    assert spread(2, 4) == [0, 0, 1, 1]
    assert spread(1, 3) == [0, 0, 0]


def test_a_text_that_does_not_fit_is_an_error(folder: Path) -> None:
    classifier = load_classifier(f"transformers+name:{folder}", device="cpu")
    fitting = "x" * 47  # and the mark of a word's start
    classifier.check_label(fitting)
    for name, message in ((fitting + "x", "at most 48 fit"), ("<extra_id_0>", "reserved"), (" ", "empty")):
        with pytest.raises(LabelTextError, match=message):
            classifier.check_label(name)
