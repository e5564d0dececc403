"""Video-text models of transformers behind the service, and in the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from support.live import live_service
from support.pretrained import WRITERS, random_videos
from support.serving import add, assert_problem, classify, colour_video, serving
from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.factory import load_classifier
from vidlex.model.video.precision import PlainVideoEncoder
from vidlex.service.cli import app

NAMES = ("dog", "red car")


def expected(classifier: Any, video: Path, num_frames: int | None = None) -> dict[str, tuple[float, float]]:
    frames = decode_frames(video, geometry=classifier.geometry, num_frames=num_frames or classifier.num_frames).frames
    similarities = classifier.encode_video([frames])[0] @ classifier.encode_labels(NAMES).T
    return dict(zip(NAMES, zip(similarities, classifier.scorer.probability(similarities), strict=True), strict=True))


def assert_scored(answer: Any, expected: dict[str, tuple[float, float]], tolerance: float = 1e-4) -> None:
    assert answer.status_code == 200, answer.text
    found = {label["name"]: (label["similarity"], label["score"]) for label in answer.json()["labels"]}
    assert set(found) == set(expected)
    for name, pair in found.items():
        assert pair == pytest.approx(expected[name], abs=tolerance)
    (first, _), (second, _) = found.values()
    assert abs(first - second) > 3 * tolerance


@pytest.mark.parametrize("kind", ["clip", "pe_audio_video", "siglip2", "videoprism", "xclip"])
def test_scores_over_http_are_the_classifiers(kind: str, tmp_path: Path) -> None:
    classifier = load_classifier(f"transformers:{WRITERS[kind](tmp_path / 'model')}", device="cpu")
    video = colour_video(tmp_path / "video.mp4", "red", "blue", "green")
    with serving(tmp_path / "data", classifier=classifier) as client:
        add(client, *NAMES)
        too_long = client.post("/labels", json={"name": "x" * 60})
        assert_problem(too_long, 422, "label_text_invalid")
        answers = {n: classify(client, video, num_frames=n) for n in (1, 3, 8)}
        default = classify(client, video)
    for num_frames, answer in answers.items():
        assert_scored(answer, expected(classifier, video, num_frames))
    assert_scored(default, expected(classifier, video))


def test_a_served_process_loads_the_folder(tmp_path: Path) -> None:
    """The process prints one line; transformers prints another one for PE-AV."""
    folder = WRITERS["pe_audio_video"](tmp_path / "model")
    video = colour_video(tmp_path / "video.mp4", "red", "blue")
    classifier = load_classifier(f"transformers:{folder}", device="cpu")
    settings = {"VIDLEX_DEVICE": "cpu", "VIDLEX_PRECISION": "float32", "HF_HUB_OFFLINE": "1"}
    with (
        live_service(tmp_path / "data", f"transformers:{folder}", **settings) as url,
        httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client,
    ):
        add(client, *NAMES)
        assert_scored(classify(client, video), expected(classifier, video))


@pytest.mark.parametrize("kind", WRITERS)
def test_half_precision_is_close(kind: str, tmp_path: Path) -> None:
    classifier: Any = load_classifier(f"transformers:{WRITERS[kind](tmp_path)}", device="cpu")
    videos = np.stack(random_videos(5, 5, 5, side=classifier.geometry.image_size))
    rounded = PlainVideoEncoder(classifier.video, torch.bfloat16).encode_video(torch.from_numpy(videos)).numpy()
    exact = classifier.encode_video(list(videos))
    assert not np.array_equal(rounded, exact)
    assert (rounded * exact).sum(axis=1).min() > 0.99


def test_evaluation_takes_the_spec(tmp_path: Path) -> None:
    folder = WRITERS["siglip"](tmp_path / "model")
    for name, colours in (("dog", ("red", "blue")), ("red car", ("green",))):
        colour_video(tmp_path / f"{name}.mp4", *colours)
    write_manifest(tmp_path / "m.jsonl", [Entry(f"{name}.mp4", (name,)) for name in NAMES])
    command = ["eval", str(tmp_path / "m.jsonl"), "--model", f"transformers+photo:{folder}", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_videos"] == 2
    refused = CliRunner().invoke(app, [*command[:3], "transformers:/nowhere"])
    assert refused.exit_code == 2 and "neither a folder nor ORG/NAME" in refused.output.replace("\n", " ")


@pytest.mark.parametrize("kind", ["pe_audio_video", "xclip"])
def test_a_labels_vector_does_not_depend_on_its_batch(kind: str, tmp_path: Path) -> None:
    classifier = load_classifier(f"transformers:{WRITERS[kind](tmp_path)}", device="cpu")
    names = [f"label {'x' * i}" for i in range(20)]
    together = classifier.encode_labels(names)
    for i in (0, 19):
        assert np.allclose(classifier.encode_labels([names[i]])[0], together[i], atol=1e-6)
    assert classifier.encode_labels([]).shape == (0, classifier.dim)
