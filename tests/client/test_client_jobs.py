"""Jobs with `Client` and `AsyncClient`: against a running service, and against a server that breaks."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.client_kinds import KINDS, opened
from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_process, live_service
from support.processes import until
from support.scripted_http import Answer, ScriptedServer, problem, scripted
from support.serving import colour_video
from vidlex.service.client import errors
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.job_calls import EventParser, JobEvent
from vidlex.service.schemas.classify import ClassificationView

_ID = "job_01jq5xk9y2abcdefghjkmnpq"


@dataclass(frozen=True)
class Service:
    url: str
    files: HeldFiles


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("jobs")
    colour_video(folder / "red.mp4", "red")
    (folder / "text.mp4").write_text("no video\n" * 50)
    with held_files(folder) as files, live_service(folder / "data", **ENVIRONMENT) as url:
        yield Service(url, files)


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[Any]:
    with opened(request.param, service.url) as found:
        found.create_label("red", if_exists="return")
        yield found


@pytest.fixture
def red(service: Service) -> Path:
    return service.files.folder / "red.mp4"


def test_a_job_from_its_submission_to_its_result(client: Any, red: Path) -> None:
    sent: list[tuple[int, int | None]] = []
    job = client.jobs.submit(
        red, top_k=1, metadata={"order": 17}, priority="high", on_progress=lambda *counts: sent.append(counts)
    )
    assert sent[-1] == (red.stat().st_size, red.stat().st_size)
    assert job.id.startswith("job_") and job.view.metadata == {"order": 17} and job.view.priority == "high"
    result = job.result(timeout_seconds=60)
    assert isinstance(result, ClassificationView) and [label.name for label in result.labels] == ["red"]
    assert job.state == "succeeded" and job.is_finished and job.view.attempts == 1
    again = client.jobs.get(job.id)
    assert again.id == job.id and again.refresh().result() == result
    assert again.wait(0.0).state == "succeeded"
    for video in (red.read_bytes(), io.BytesIO(red.read_bytes())):
        assert client.jobs.submit(video, top_k=1).result().video.sha256 == result.video.sha256


def test_a_repetition_is_the_same_job(client: Any, red: Path, service: Service) -> None:
    with red.open("rb") as file:
        first = client.jobs.submit(file, idempotency_key=f"key {id(client)}")
    assert client.jobs.submit(red, idempotency_key=f"key {id(client)}").id == first.id
    assert client.jobs.submit(red).id != first.id
    with pytest.raises(errors.RequestInvalid) as reused:
        client.jobs.submit(service.files.folder / "text.mp4", idempotency_key=f"key {id(client)}")
    assert reused.value.code == "idempotency_key_reused"


def test_events_of_a_job(client: Any, service: Service) -> None:
    url = service.files.hold("red.mp4")
    job = client.jobs.submit(url=url)
    threading.Timer(0.3, service.files.let, [url]).start()
    events = list(job.events())
    assert [event.data["state"] for event in events if event.type == "state"] == ["queued", "running", "succeeded"]
    assert events[-1].is_final and not events[0].is_final
    assert list(job.events(after=events[0].id)) == events[1:]
    assert list(job.events(after=events[-1].id)) == []


def test_jobs_are_waited_for_and_cancelled(client: Any, service: Service) -> None:
    url = service.files.hold("red.mp4")
    job = client.jobs.submit(url=url)
    with pytest.raises(errors.JobNotFinished):
        job.wait(timeout_seconds=0.2)
    until(lambda: job.refresh().state == "running")
    assert job.cancel().view.cancelling
    service.files.let(url)
    assert job.wait(60).state == "cancelled"
    with pytest.raises(errors.JobFailed) as cancelled:
        job.result()
    assert cancelled.value.code == "job_cancelled"
    assert job.retry().wait(60).state == "succeeded"
    with pytest.raises(errors.Conflict):
        client.jobs.retry(job.id)
    assert client.jobs.cancel(job.id).state == "succeeded"


def test_failures_are_those_of_classify(client: Any, service: Service) -> None:
    job = client.jobs.submit(service.files.folder / "text.mp4")
    with pytest.raises(errors.VideoInvalid) as failed:
        job.result()
    assert failed.value.code == "unsupported_media" and job.state == "failed"
    with pytest.raises(errors.UrlInvalid) as refused:
        client.jobs.submit(url="https://elsewhere.example/a.mp4")
    assert refused.value.code == "url_refused"
    with pytest.raises(errors.UrlInvalid):
        client.jobs.submit(url=f"{service.files.url}/gone.mp4").result()
    with pytest.raises(errors.NotFound):
        client.jobs.get("job_a/../../labels")
    for both in ({}, {"file": b"x", "url": "https://a.example/"}):
        with pytest.raises(errors.RequestInvalid):
            client.jobs.submit(**both)


def test_a_batch(client: Any, service: Service) -> None:
    names = ["red.mp4", "text.mp4"]
    manifest = "".join(json.dumps({"custom_id": n, "url": f"{service.files.url}/{n}"}) + "\n" for n in names)
    job = client.jobs.submit(manifest.encode(), kind="batch", candidate_labels=("red", "green")).wait(60)
    assert job.state == "succeeded" and job.view.request_counts.completed == 1
    (line,) = job.output()
    assert line["custom_id"] == "red.mp4" and line["result"]["labels"][0]["name"] == "red"
    (line,) = job.errors()
    assert line["error"]["code"] == "unsupported_media"
    with pytest.raises(errors.Conflict):
        job.result()
    with pytest.raises(errors.Conflict):
        list(client.jobs.submit(service.files.folder / "red.mp4").wait(60).output())


def test_jobs_are_listed(client: Any, red: Path) -> None:
    ids = [client.jobs.submit(red).wait(60).id for _ in range(3)]
    listed = list(client.jobs.list(page_size=2, state="succeeded", kind="classify"))
    assert [job.id for job in listed[:3]] == ids[::-1] and len(listed) > 3
    assert list(client.jobs.list(dead=True)) == []


@pytest.fixture(params=KINDS)
def scripted_client(request: pytest.FixtureRequest) -> Iterator[tuple[Any, ScriptedServer]]:
    with scripted() as server:
        policy = RetryPolicy(max_seconds=30, connect_seconds=10)
        with opened(request.param, server.url, retries=policy) as client:
            yield client, server


def test_events_go_on_with_the_next_process_of_the_service(tmp_path: Path) -> None:
    """Both clients follow one job, whose service stops and starts again at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    colour_video(tmp_path / "red.mp4", "red", "blue", frames_each=400)
    environment = {"VIDLEX_SHUTDOWN_GRACE_SECONDS": "1", **ENVIRONMENT}
    policy = RetryPolicy(max_seconds=120, connect_seconds=120)
    found: dict[str, list[JobEvent]] = {}

    def follow(kind: str, client: Any, job_id: str) -> None:
        found[kind] = list(client.jobs.get(job_id).events())

    with held_files(tmp_path) as files, ExitStack() as clients:
        url = files.hold("red.mp4")
        opened_clients = {
            kind: clients.enter_context(opened(kind, f"http://127.0.0.1:{port}", retries=policy)) for kind in KINDS
        }
        client = opened_clients["sync"]
        with live_process(tmp_path / "data", port=port, **environment):
            client.create_label("red")
            job = client.jobs.submit(url=url)
            threads = [
                threading.Thread(target=follow, args=(kind, one, job.id)) for kind, one in opened_clients.items()
            ]
            for thread in threads:
                thread.start()
            until(lambda: job.refresh().state == "running")
        files.let(url)
        with live_process(tmp_path / "data", port=port, **environment):
            for thread in threads:
                thread.join()
            whole = list(job.events())
    for events in found.values():
        ids = [event.id for event in events]
        assert len(set(ids)) == len(ids)
        assert {event.id for event in whole} <= set(ids)
        states = [event.data["state"] for event in events if event.type == "state"]
        assert states == ["queued", "running", "queued", "running", "succeeded"]


def view(state: str = "queued", **more: Any) -> dict[str, Any]:
    nothing = ("input", "webhook", "progress", "request_counts", "error", "started_at_ms", "finished_at_ms")
    nothing += ("expires_at_ms", "result", "result_url", "output_url", "errors_url")
    facts = {"id": _ID, "kind": "classify", "state": state, "cancelling": False, "dead": False, "priority": "normal"}
    facts |= {"metadata": {}, "attempts": 0, "max_attempts": 3, "created_at_ms": 1, "events_url": f"/jobs/{_ID}/events"}
    return {**facts, **dict.fromkeys(nothing), **more}


def frame(event_id: str, state: str) -> str:
    return f'id: {event_id}\nevent: state\ndata: {{"state":"{state}"}}\n\n'


def test_an_upload_that_broke_is_sent_again_with_the_same_key(scripted_client: tuple[Any, ScriptedServer]) -> None:
    client, server = scripted_client
    busy = problem(429, "share_exceeded", retry_after=1)
    server.answers = [Answer(202, view(), breaks="silent"), busy, Answer(202, view())]
    job = client.jobs.submit(b"video" * 1000)
    assert job.id == _ID and len(server.asked) == 3
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert len(keys) == 1 and len({asked.num_bytes for asked in server.asked}) == 1


def test_events_go_on_behind_the_last_one(scripted_client: tuple[Any, ScriptedServer]) -> None:
    client, server = scripted_client
    first = "retry: 1\n\n: comment\n\n" + frame("1-0", "queued") + frame("2-0", "running")
    padding = ": " + "x" * (len(first) + 10) + "\n\n"  # what breaks is after the half
    server.answers = [
        Answer(200, view()),
        Answer(200, (first + padding).encode(), breaks="half"),
        problem(503, "stopping", retry_after=1),
        Answer(200, b": nothing yet\n\n"),
        Answer(200, frame("3-0", "succeeded").encode()),
    ]
    job = client.jobs.get(_ID)
    assert [event.id for event in job.events()] == ["1-0", "2-0", "3-0"]
    known = [asked.headers.get("last-event-id") for asked in server.asked[1:]]
    assert known == [None, "2-0", "2-0", "2-0"]
    server.answers = [problem(404, "not_found")]
    with pytest.raises(errors.NotFound):
        list(job.events())
    server.answers = [Answer(204)]
    assert list(job.events(after="3-0")) == []
    assert server.asked[-1].headers["last-event-id"] == "3-0"


def test_a_service_that_does_not_wait_is_asked_again(scripted_client: tuple[Any, ScriptedServer]) -> None:
    client, server = scripted_client
    server.answers = [Answer(200, view()), Answer(200, view("running")), Answer(200, view("expired"))]
    job = client.jobs.get(_ID).wait(timeout_seconds=60)
    assert job.state == "expired" and len(server.asked) == 3
    assert server.asked[1].headers["prefer"] == "wait=30"


def test_a_body_that_is_no_event(scripted_client: tuple[Any, ScriptedServer]) -> None:
    client, server = scripted_client
    server.answers = [Answer(200, view()), Answer(200, b"data: [1]\n\n")]
    with pytest.raises(errors.UnexpectedAnswer):
        list(client.jobs.get(_ID).events())


def test_events_in_pieces() -> None:
    text = ': c\r\nid: 1-0\r\nevent: labels\r\ndata: {"a":\r\ndata: "\u00fc"}\r\n\r\n' + frame("2-0", "failed")
    for size in (1, 2, 7, 1000):
        parser, data = EventParser(), text.encode()
        found = [event for i in range(0, len(data), size) for event in parser.feed(data[i : i + size])]
        assert [(event.id, event.type) for event in found] == [("1-0", "labels"), ("2-0", "state")], size
        assert found[0].data == {"a": "\u00fc"} and found[1].is_final
