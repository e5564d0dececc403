"""The engine in this process against real services: the same labels, scores and failures."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from support.classifiers import RecordingClassifier
from support.live import live_service
from support.serving import add, classify, colour_video
from support.tagging import NAMES, dummy_snapshot, tag
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.dummy import DummyClassifier
from vidlex.model.specs import zoo_dir
from vidlex.service.bulk.engine import LocalFile
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.local.opening import open_engine
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.local.snapshot import snapshot_of_labels
from vidlex.service.bulk.local.vocabulary import labels_of_names
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import TaggedLabel, TagResult
from vidlex.service.engine.video_queue import EncodedVideo
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.sharing.requester import Requester


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    colour_video(made / "red.mp4", "red")
    colour_video(made / "mixed.mp4", "red", "green", "blue")
    colour_video(made / "black.mp4", "black", "blue")
    colour_video(made / "long.mp4", *["red", "green"] * 13, "blue")  # 27 s: sampled by its shots
    (made / "broken.mp4").write_bytes((made / "red.mp4").read_bytes()[:300])
    (made / "text.mp4").write_bytes(b"no video" * 100)
    return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "data"


@pytest.fixture(scope="module")
def service(data_dir: Path) -> Iterator[httpx.Client]:
    """With thresholds, categories and a calibration."""
    with (
        live_service(data_dir, VIDLEX_DECODE_WORKERS="1") as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        add(client, "red", threshold=0.9, categories=["warm"])
        add(client, "green", "Blue", "yellow")
        add(client, "magenta", threshold=0.01)
        rng = np.random.default_rng(1)
        vectors = np.abs(rng.standard_normal((40, 3)) * 0.2 + (1, 0.2, 0.1)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        statistics = {"model": DummyClassifier().fingerprint, **DomainStatistics.of(vectors).to_dict()}
        made = client.put("/calibration", json={"source": "statistics", "statistics": statistics})
        assert made.status_code == 200, made.text
        yield client


@pytest.fixture(scope="module")
def stored(service: httpx.Client, data_dir: Path) -> Iterator[LocalEngine]:
    """Of the running service's labels."""
    engine = open_engine(LocalSetup(model="dummy", namespace="default", data_dir=data_dir, decode_workers=1))
    yield engine
    engine.close()


def label_view(label: TaggedLabel) -> dict[str, Any]:
    stretches = [
        {"start_ms": s.start_ms, "end_ms": s.end_ms, "score": s.score, "peak_ms": s.peak_ms} for s in label.stretches
    ]
    return {
        "id": label.id,
        "name": label.name,
        "score": label.score,
        "threshold": label.threshold,
        "matched": label.matched,
        "stretches": stretches,
    }


def assert_same(result: TagResult, answer: dict[str, Any]) -> None:
    """Bit for bit: the file was alone in its batch in both."""
    assert result.failure is None
    keys = ("id", "name", "score", "threshold", "matched", "stretches")
    assert [label_view(label) for label in result.labels] == [{k: x[k] for k in keys} for x in answer["labels"]]
    assert result.video is not None
    for name in ("duration_ms", "start_ms", "width", "height", "fps", "codec"):
        assert getattr(result.video, name) == answer["video"][name]
    assert result.sha256 == answer["video"]["sha256"]
    receipt, coverage = result.receipt, answer["coverage"]
    assert receipt is not None
    assert (receipt.decoder, receipt.encoder) == (answer["receipt"]["decoder"], answer["receipt"]["encoder"])
    assert (receipt.model_id, receipt.fingerprint) == (answer["model"]["id"], answer["model"]["fingerprint"])
    assert (receipt.calibration, receipt.vocabulary_revision) == (answer["calibration"], answer["vocabulary_revision"])
    used = (receipt.frame_policy, receipt.frames_decoded, receipt.frames_failed)
    assert used == tuple(coverage[key] for key in ("frame_policy", "frames_decoded", "frames_failed"))
    assert list(result.warnings) == [(warning["code"], warning["detail"]) for warning in answer["warnings"]]


@pytest.mark.parametrize("name", ["red.mp4", "mixed.mp4", "black.mp4", "long.mp4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2, "min_score": 0.01},
        {"num_frames": 3, "frame_policy": "keyframes", "start_ms": 200, "end_ms": 900},
        {"aggregate_by": "segments", "segment_ms": 500},
    ],
    ids=["default", "filtered", "window", "segments"],
)
def test_a_video_has_the_labels_and_scores_of_the_service(
    service: httpx.Client, stored: LocalEngine, folder: Path, name: str, options: dict[str, Any]
) -> None:
    answer = classify(service, folder / name, **options)
    own = {key: value for key, value in options.items() if key != "aggregate_by"}
    result = tag(stored, folder / name, **own, segments="aggregate_by" in options)
    assert answer.status_code == 200, answer.text
    assert_same(result, answer.json())
    assert result.receipt is not None and result.receipt.calibration is not None
    if "aggregate_by" in options:
        spans = [(segment.start_ms, segment.end_ms) for segment in result.segments]
        for label in answer.json()["labels"]:
            assert [(x["start_ms"], x["end_ms"]) for x in label["segments"]] == spans
            found = [next(x for x in segment.labels if x.id == label["id"]) for segment in result.segments]
            assert [x.score for x in found] == [x["score"] for x in label["segments"]]
            assert [x.matched for x in found] == [x["score"] >= label["threshold"] for x in label["segments"]]
        for segment in result.segments:
            assert [x.score for x in segment.labels] == sorted((x.score for x in segment.labels), reverse=True)


@pytest.mark.parametrize("name", ["broken.mp4", "text.mp4"])
def test_a_broken_file_has_the_service_s_code_and_sentence(
    service: httpx.Client, stored: LocalEngine, folder: Path, name: str
) -> None:
    problem = classify(service, folder / name).json()
    failure = tag(stored, folder / name).failure
    assert failure is not None
    assert (failure.code, failure.detail) == (problem["code"], problem["detail"])


def test_invalid_windows_and_missing_files_are_failures_of_their_video(
    service: httpx.Client, stored: LocalEngine, folder: Path
) -> None:
    window = {"start_ms": 60_000, "end_ms": 61_000}
    problem = classify(service, folder / "red.mp4", **window).json()
    failure = tag(stored, folder / "red.mp4", **window).failure
    assert failure is not None and (failure.code, failure.detail) == (problem["code"], problem["detail"])
    gone = LocalFile(folder / "gone.mp4", "gone", "0" * 64, 1)
    failure = stored.tag(gone, TagOptions(), threading.Event()).failure
    assert failure is not None and failure.code == "file_not_readable"
    assert str(folder) not in failure.detail
    assert tag(stored, folder / "red.mp4").failure is None


def test_many_files_at_a_time_have_the_scores_of_each_alone(stored: LocalEngine, folder: Path) -> None:
    names = ["red.mp4", "mixed.mp4", "black.mp4", "long.mp4", "text.mp4"] * 6
    alone = {name: tag(stored, folder / name) for name in set(names)}
    with ThreadPoolExecutor(stored.concurrency) as threads:
        results = list(threads.map(lambda name: tag(stored, folder / name), names))
    for name, result in zip(names, results, strict=True):
        assert result.labels == alone[name].labels  # the dummy model does not round by batch
        assert result.failure == alone[name].failure
    busy = stored.busy()
    assert busy.num_decoders == busy.num_devices == 1
    assert busy.decode_seconds > 0 and busy.device_seconds > 0


def test_features_are_the_unit_vectors_of_the_segments(stored: LocalEngine, folder: Path) -> None:
    result = tag(stored, folder / "long.mp4", features=True)
    assert len(result.segments) > 1
    for segment in result.segments:
        assert segment.labels == [] and segment.features is not None
        assert len(segment.features) == 3 and np.linalg.norm(segment.features) == pytest.approx(1, abs=1e-6)
    both = tag(stored, folder / "mixed.mp4", features=True, segments=True, segment_ms=1000)
    assert [np.argmax(segment.features or ()) for segment in both.segments] == [0, 1, 2]
    assert [segment.labels[0].name for segment in both.segments] == ["red", "green", "Blue"]


def test_a_real_model_scores_as_its_service_does(tmp_path: Path) -> None:
    """emoji-small as it ships, with its own choice of precision."""
    samples = sorted((zoo_dir() / "emoji-small" / "samples").glob("*.mp4"))[:4]
    names = ["dog", "rocket"]
    data_dir, model = tmp_path / "data", "emoji-small"
    with (
        live_service(data_dir, model, VIDLEX_DECODE_WORKERS="1") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=120) as client,
        ExitStack() as opened,
    ):
        add(client, *names)
        answers = [classify(client, path).json() for path in samples]
        engine = open_engine(LocalSetup(model=model, namespace="default", data_dir=data_dir, decode_workers=1))
        opened.callback(engine.close)
        for path, answer in zip(samples, answers, strict=True):
            assert_same(tag(engine, path), answer)
        with ThreadPoolExecutor(len(samples)) as threads:  # in batches, which round differently
            together = list(threads.map(lambda path: tag(engine, path), samples))
        for result, answer in zip(together, answers, strict=True):
            scores = {label.name: label.score for label in result.labels}
            assert scores == pytest.approx({x["name"]: x["score"] for x in answer["labels"]}, abs=1e-5)


def test_a_list_of_names_scores_as_candidate_labels(
    service: httpx.Client, folder: Path, tmp_path: Path, data_dir: Path
) -> None:
    assert service.delete("/calibration").status_code == 204
    labels = ({"name": "red", "threshold": 0.999}, "green", "  blue ", "green")
    engine = open_engine(LocalSetup(model="dummy", labels=labels, data_dir=tmp_path, decode_workers=1))
    try:
        answer = classify(service, folder / "mixed.mp4", candidate_labels=["red", "green", "blue"]).json()
        result = tag(engine, folder / "mixed.mp4")
    finally:
        engine.close()
    assert [(x.name, x.score) for x in result.labels] == [(x["name"], x["score"]) for x in answer["labels"]]
    assert {x.name: x.threshold for x in result.labels} == {"red": 0.999, "green": 0.5, "blue": 0.5}
    assert {x.id for x in result.labels} == {None}
    assert result.receipt is not None and result.receipt.vocabulary_revision is None


class CountingEncoder:
    """Stands for an encoder elsewhere."""

    def __init__(self) -> None:
        self._encoder = LocalEncoder([DummyClassifier()])
        self.num_videos = 0
        self.close = self._encoder.close

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 60.0,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        self.num_videos += len(videos)
        return self._encoder.encode_videos(videos, requester=requester, timeout_seconds=timeout_seconds)


def test_an_encoder_elsewhere_is_used_with_a_pickled_snapshot(folder: Path) -> None:
    snapshot = pickle.loads(pickle.dumps(dummy_snapshot()))
    assert snapshot.digest == dummy_snapshot(*reversed(NAMES)).digest
    encoder = CountingEncoder()
    engine = LocalEngine(snapshot, encoder, decode_workers=1, encoder_name="elsewhere", num_encoding=3)
    try:
        assert engine.concurrency == 4
        result = tag(engine, folder / "red.mp4")
        assert engine.busy().num_devices == 0
    finally:
        engine.close()
        encoder.close()
    assert encoder.num_videos == 1
    assert result.receipt is not None and result.receipt.encoder == "elsewhere"
    assert [label.name for label in result.matched] == ["red", "Yellow"]


def test_the_digest_changes_with_what_scores_depend_on() -> None:
    def digest(*labels: Any) -> str:
        encoder = LocalEncoder([DummyClassifier()])
        try:
            return snapshot_of_labels("dummy", encoder, labels_of_names(labels), LabelCache(Path("/unused"), 0)).digest
        finally:
            encoder.close()

    digests = [
        digest("red", "green"),
        digest("red"),
        digest("Red", "green"),
        digest({"name": "red", "threshold": 0.4}, "green"),
        digest({"name": "red", "categories": ["warm"]}, "green"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("green", {"name": "red", "aliases": ["crimson"]}) == digests[0]


def test_a_second_start_encodes_no_label_again(tmp_path: Path) -> None:
    names = [f"label {number}" for number in range(300)]
    for num_encoded in (300, 0):
        classifier = RecordingClassifier()
        encoder = LocalEncoder([classifier])
        cache = LabelCache(tmp_path, 2**24)
        shown: dict[int, int] = {}
        found = snapshot_of_labels("dummy", encoder, labels_of_names(names), cache, on_progress=shown.__setitem__)
        cache.close()
        encoder.close()
        assert len(classifier.names) == num_encoded
        assert shown == ({256: 300, 300: 300} if num_encoded else {})
        assert np.array_equal(found.vectors, DummyClassifier().encode_labels(names))
