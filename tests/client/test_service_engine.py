"""`Client.tag`: files tagged with a running service, within its admission."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.live import live_process, live_service
from support.scripted_http import Answer, problem, scripted
from support.serving import colour_video
from vidlex.service.bulk.engine import EngineUnavailable, LocalFile
from vidlex.service.bulk.options import TagOptions
from vidlex.service.client import errors
from vidlex.service.client.async_client import AsyncClient
from vidlex.service.client.client import Client
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.engine import ServiceEngine
from vidlex.service.schemas.classify import ClassificationView

COLOURS = ("red", "green", "blue", "black")
NEVER = threading.Event()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # So few places that a client with several threads is refused.
    limits = {"VIDLEX_MAX_WAITING_VIDEOS": "2", "VIDLEX_MAX_WAITING_UPLOADS": "4", "VIDLEX_DECODE_WORKERS": "1"}
    with live_service(tmp_path_factory.mktemp("engine") / "data", **limits) as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("videos")
    for number, colour in enumerate(COLOURS):
        colour_video(path / f"{number} {colour}.mp4", colour)
    (path / "broken.mp4").write_bytes(b"not a video")
    return path


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as found:
        for label in found.labels():
            found.delete_label(label.id)
        found.create_labels([*COLOURS[:3], {"name": "any", "threshold": 0.0}])
        yield found


def local_file(path: Path) -> LocalFile:
    content = path.read_bytes()
    return LocalFile(path, str(path), hashlib.sha256(content).hexdigest(), len(content))


def test_a_folder_in_order(client: Client, folder: Path) -> None:
    results = list(client.tag(folder, concurrency=8, top_k=2))
    assert [Path(result.uri).name for result in results] == [
        *(f"{number} {colour}.mp4" for number, colour in enumerate(COLOURS)),
        "broken.mp4",
    ]
    for result, colour in zip(results, COLOURS[:3], strict=False):
        assert result.failure is None and result.video is not None and result.receipt is not None
        assert [label.name for label in result.matched if label.name != "any"] == [colour]
        label = next(label for label in result.labels if label.name == colour)
        assert label.id and label.stretches
        assert result.receipt.vocabulary_revision and result.timings_ms["decode"] >= 0
        assert result.sha256 == hashlib.sha256(Path(result.uri).read_bytes()).hexdigest()
        assert result.result_id and len(result.result_id) == 64
    broken = results[-1]
    assert broken.failure is not None and broken.failure.code in ("undecodable_video", "unsupported_media")
    assert broken.result_id and broken.labels == ()


def test_more_than_the_service_admits_is_waited_for(client: Client, folder: Path) -> None:
    def num_refused() -> float:
        lines = [line for line in client.metrics().splitlines() if line.startswith("vidlex_refusals_total")]
        return sum(float(line.split()[-1]) for line in lines if "share_exceeded" in line or "overloaded" in line)

    before = num_refused()
    paths = [folder / f"{number % 4} {COLOURS[number % 4]}.mp4" for number in range(24)]
    copies = []
    for number, path in enumerate(paths):  # of equal content only one is sent
        copies.append(folder / f"copy {number}")
        copies[-1].write_bytes(path.read_bytes() + number.to_bytes(4, "big"))
    try:
        results = list(client.tag(copies, concurrency=12))
    finally:
        for copy in copies:
            copy.unlink()
    assert [result.failure for result in results] == [None] * 24
    assert num_refused() > before


def test_an_event_loop_waits_for_admission_too(client: Client, url: str, folder: Path) -> None:
    content = (folder / "0 red.mp4").read_bytes()

    async def classify_all() -> list[ClassificationView]:
        async with AsyncClient(url) as asynchronous:
            videos = (content + number.to_bytes(4, "big") for number in range(16))
            return await asyncio.gather(*(asynchronous.classify(video) for video in videos))

    answers = asyncio.run(classify_all())
    assert len({answer.video.sha256 for answer in answers}) == 16
    assert all(answer.labels == answers[0].labels for answer in answers)


def test_scores_are_those_of_classify(client: Client, folder: Path) -> None:
    path = folder / "0 red.mp4"
    (result,) = client.tag([path], segments=True, segment_ms=500, num_frames=1)
    answer = client.classify(path, aggregate_by="segments", segment_ms=500, num_frames=1)
    assert [(label.id, label.score) for label in result.labels] == [(label.id, label.score) for label in answer.labels]
    assert [segment.start_ms for segment in result.segments] == [s.start_ms for s in answer.labels[0].segments]
    scores = {label.id: [segment.score for segment in label.segments] for label in answer.labels}
    for i, segment in enumerate(result.segments):
        assert {label.id: label.score for label in segment.labels} == {key: s[i] for key, s in scores.items()}
        assert [label.score for label in segment.labels] == sorted((s[i] for s in scores.values()), reverse=True)
    assert result.receipt is not None and result.receipt.decoder == answer.receipt.decoder


def test_as_completed_and_lazily(client: Client, folder: Path) -> None:
    asked: list[int] = []

    def endless() -> Iterator[Path]:
        for number in range(10_000):
            asked.append(number)
            yield folder / f"{number % 4} {COLOURS[number % 4]}.mp4"

    results = client.tag(endless(), ordered=False)
    found = [next(results) for _ in range(8)]
    results.close()  # type: ignore[attr-defined]
    assert all(result.failure is None for result in found) and len(asked) < 1000


def test_candidate_labels(client: Client, folder: Path) -> None:
    (result,) = client.tag([folder / "2 blue.mp4"], candidate_labels=["blue", "green"])
    assert [(label.id, label.name) for label in result.labels] == [(None, "blue"), (None, "green")]
    assert result.receipt is not None and result.receipt.vocabulary_revision is None


def test_the_identity_is_of_what_scores(client: Client) -> None:
    def digest(**options: Any) -> str:
        return ServiceEngine(client, **options).identity.vocabulary

    engine = ServiceEngine(client)
    assert (engine.identity.num_labels, engine.identity.fingerprint) == (4, client.models().served.fingerprint)
    before = engine.identity.vocabulary
    label = client.find_label("any")
    client.update_label(label.id, metadata={"a": 1}, aliases=["every"])
    assert digest() == before, "neither changes a score"
    found = {before}
    for change in ({"threshold": 0.5}, {"categories": ["x"]}, {"name": "all"}):
        client.update_label(label.id, **change)  # type: ignore[arg-type]
        found.add(digest())
    assert len(found) == 4
    assert digest(candidate_labels=["a"]) != digest(candidate_labels=["b"])


def test_a_vocabulary_that_changes_gets_other_ids(client: Client, folder: Path) -> None:
    file, options = local_file(folder / "0 red.mp4"), TagOptions()
    engine = ServiceEngine(client)
    first, again = (engine.tag(file, options, NEVER) for _ in range(2))
    client.create_label("of tomorrow")
    later = engine.tag(file, options, NEVER)
    reopened = ServiceEngine(client).tag(file, options, NEVER)
    assert first.result_id == again.result_id
    assert len({first.result_id, later.result_id, reopened.result_id}) == 3, "done again with the labels that it names"
    assert later.failure is None and len(later.labels) == 5


def test_bad_options_are_refused_at_once(client: Client, folder: Path) -> None:
    with pytest.raises(errors.RequestInvalid, match="top_k"):
        client.tag(folder, top_k=-1)
    for names in ([], ["name"] * 1001):
        with pytest.raises(errors.RequestInvalid, match="candidate_labels"):
            client.tag(folder, candidate_labels=names)
    with pytest.raises(errors.RequestInvalid) as caught:
        client.tag(folder / "missing.mp4")
    assert caught.value.code == "source_invalid"
    (result,) = client.tag([folder / "missing.mp4"])
    assert result.failure is not None and result.failure.code == "file_not_readable"
    (vectors,) = client.tag([folder / "0 red.mp4"], features=True)
    assert vectors.failure is not None and vectors.failure.code == "invalid_parameter"


def test_a_file_that_is_not_what_was_hashed(client: Client, folder: Path) -> None:
    file = dataclasses.replace(local_file(folder / "0 red.mp4"), sha256="0" * 64)
    result = ServiceEngine(client).tag(file, TagOptions(), NEVER)
    assert result.failure is not None and result.failure.code == "file_changed"
    gone = dataclasses.replace(file, path=folder / "gone.mp4")
    missing = ServiceEngine(client).tag(gone, TagOptions(), NEVER)
    assert missing.failure is not None and str(folder) not in missing.failure.detail
    assert missing.failure.code == "file_not_readable" and "No such file" in missing.failure.detail


def test_a_service_that_stops_ends_the_run(tmp_path: Path, folder: Path) -> None:
    with live_process(tmp_path / "data") as (address, process), Client(address) as client:
        client.create_label("red")
        engine = ServiceEngine(client)
        assert engine.tag(local_file(folder / "0 red.mp4"), TagOptions(), NEVER).failure is None
        key = client.create_key("admin")
        with pytest.raises(EngineUnavailable, match="API key"):
            engine.tag(local_file(folder / "0 red.mp4"), TagOptions(), NEVER)
        with Client(address, key.key) as known:
            known.create_label("green")
        with pytest.raises(errors.NotAuthorized):
            list(client.tag(folder))
        process.terminate()
        process.wait(60)
    with Client(address, retries=RetryPolicy(connect_seconds=0.0)) as client, pytest.raises(errors.ConnectionFailed):
        client.tag(folder)


# --- answers that a service seldom gives


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Tags a file with a service that answers so."""
    monkeypatch.setattr("vidlex.service.client.engine.WAITING", RetryPolicy(max_seconds=0.5, connect_seconds=0.0))
    calibration = {
        "object": "calibration", "fingerprint": None, "model": {"id": "m", "fingerprint": "m-1"}, "source": None,
        "num_videos": 0, "created_at_ms": None, "has_platt": False, "num_recent_videos": 0, "stored": False,
        "vocabulary_revision": 1, "labels": [],
    }  # fmt: skip
    labels: dict[str, Any] = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    with scripted() as server, Client(server.url) as client:
        server.answers = [Answer(200, calibration), Answer(200, labels), Answer(200, calibration), Answer()]
        engine = ServiceEngine(client)
        file = local_file(folder / "0 red.mp4")

        def tag(*answers: Answer, cancelled: threading.Event = NEVER) -> Any:
            server.answers = list(answers)
            return engine.tag(file, TagOptions(), cancelled)

        yield tag


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (422, "video_too_long"),
        (413, "upload_too_large"),
        (503, "encode_failed"),
        (500, "internal_error"),
        (504, "deadline_exceeded"),
        (403, "byte_quota_exceeded"),
    ],
)
def test_failures_of_a_video(told: Callable[..., Any], status: int, code: str) -> None:
    result = told(problem(status, code))
    assert (result.failure.code, result.failure.detail) == (code, f"detail of {code}")


@pytest.mark.parametrize(
    "answer",
    [
        problem(403, "forbidden"),
        problem(503, "store_unavailable"),
        problem(429, "rate_limited", retry_after=0),
        problem(507, "storage_full"),
        Answer(404, b"<html>"),
        Answer(200, b"<html>"),
        Answer(200, {}, breaks="silent"),
    ],
)
def test_failures_of_every_video(told: Callable[..., Any], answer: Answer) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        told(answer)
    assert isinstance(caught.value.__cause__, errors.VidlexClientError)


def test_a_video_that_takes_too_long_is_a_failure_while_the_service_lives(
    told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Client._send

    def late(self: Client, call: Any) -> Any:
        return errors.TimedOut("late") if call.path == "/classify" else send(self, call)

    monkeypatch.setattr(Client, "_send", late)
    assert told(Answer(200, {"status": "alive"})).failure.code == "timed_out"
    with pytest.raises(EngineUnavailable):
        told(problem(500, "internal_error"))


def test_a_wait_ends_when_the_run_does(told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.client.engine.WAITING", RetryPolicy(max_seconds=3600.0))
    cancelled, results = threading.Event(), []
    thread = threading.Thread(
        target=lambda: results.append(told(problem(429, "overloaded", retry_after=1800), cancelled=cancelled))
    )
    thread.start()
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive() and results[0].failure.code == "cancelled"
