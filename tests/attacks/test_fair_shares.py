"""A client that asks for too much, or leaves without its answer, takes nothing from others."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from support.listening import Listening, listening
from support.processes import PATIENCE_SECONDS
from support.raw_http import connect, head
from support.serving import assert_problem, classify, colour_video, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.bench.attacks import slow_video
from vidlex.service.http.openapi.headers import NAMESPACE_HEADER

GREEDY, MODEST = "127.0.0.2", "127.0.0.3"
DROPPED_WITHIN_SECONDS = 20.0  # promised: a second or two, on a machine that does nothing else


class SlowLabels(DummyClassifier):
    """It encodes names that begin with ``new`` only when ``gate`` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.names: list[str] = []
        self.num_stuck = 0

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        if any(name.startswith("new") for name in names):
            self.num_stuck = len(names)
            assert self.gate.wait(PATIENCE_SECONDS)
        return super().encode_labels(names)


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@pytest.fixture
def slow_labels(tmp_path: Path) -> Iterator[tuple[Listening, SlowLabels]]:
    classifier = SlowLabels()
    with listening(tmp_path / "data", classifier) as service:
        try:
            yield service, classifier
        finally:
            classifier.gate.set()


def classify_request(video: bytes, params: dict[str, Any]) -> bytes:
    boundary = "x" * 20
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="v.mp4"\r\n\r\n'.encode(),
        video,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    body = b"".join(parts)
    lines = f"Content-Type: multipart/form-data; boundary={boundary}", f"Content-Length: {len(body)}"
    return head("POST", "/classify", *lines) + body


def json_request(method: str, path: str, body: Any, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    return head(method, path, "Content-Type: application/json", f"Content-Length: {len(data)}", *lines) + data


def open_all(stack: ExitStack, url: str, requests: Sequence[bytes], source: str = GREEDY) -> list[socket.socket]:
    connections = []
    for request in requests:
        connection = stack.enter_context(connect(url, source=source))
        with suppress(OSError):  # refused before its end
            connection.sendall(request)
        connections.append(connection)
    return connections


def label_floods() -> dict[str, list[bytes]]:
    names = [[f"new {i} {j}" for j in range(64)] for i in range(64)]
    batches = [{"labels": [{"name": name} for name in part]} for part in names]
    return {
        "register": [json_request("POST", "/labels", batch) for batch in batches],
        "preview": [json_request("POST", "/labels:preview", {"labels": batch["labels"][:16]}) for batch in batches],
    }


@pytest.mark.parametrize("kind", ["classify", "register", "preview", "rename"])
def test_names_of_clients_that_left_are_dropped(
    slow_labels: tuple[Listening, SlowLabels], red: Path, kind: str
) -> None:
    """64 requests with 64 new names each, whose sockets are closed at once, were an outage of 15 minutes."""
    service, classifier = slow_labels
    scheduler = service.runtime.context.require_parts().models.served.engine.scheduler
    with service.client(MODEST) as modest:
        label = modest.post("/labels", json={"name": "red"}).json()
        if kind == "classify":
            requests = [
                classify_request(red.read_bytes(), {"candidate_labels": [f"new {i} {j}" for j in range(64)]})
                for i in range(64)
            ]
        elif kind == "rename":
            requests = [json_request("PATCH", f"/labels/{label['id']}", {"name": f"new {i}"}) for i in range(64)]
        else:
            requests = label_floods()[kind]
        with ExitStack() as stack:
            open_all(stack, service.url, requests)
            wait_until(lambda: scheduler.queued_labels >= (8 if kind == "rename" else 64), "nothing is queued")
            assert scheduler.queued_labels <= 4096, "a client has half of the places"
            wait_until(lambda: classifier.num_stuck > 0, "the encoder has no batch")
        wait_until(
            lambda: scheduler.queued_labels <= classifier.num_stuck and service.metric("vidlex_videos_at_work") == 0,
            "names are queued for clients that left",
            DROPPED_WITHIN_SECONDS,
        )
        classifier.gate.set()
        answer = classify(modest, red, candidate_labels=["red", "blue"])
        assert answer.status_code == 200, answer.text
        assert modest.get(f"/labels/{label['id']}").json()["name"] == "red", "nothing was stored for clients that left"
        assert len(modest.get("/labels").json()["data"]) == 1
        wait_until(lambda: scheduler.queued_labels == 0, "names stay")


def test_a_deadline_reaches_the_label_queue(slow_labels: tuple[Listening, SlowLabels], red: Path) -> None:
    """Before, such a request waited for the timeout of labels, 15 minutes."""
    service, classifier = slow_labels
    scheduler = service.runtime.context.require_parts().models.served.engine.scheduler
    with service.client(GREEDY) as greedy, service.client(MODEST) as modest, ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(greedy.post, "/labels", json={"name": "new"})
        wait_until(lambda: "new" in classifier.names, "the encoder is not at work")
        answer = classify(modest, red, candidate_labels=["new a", "new b"], deadline_ms=1000)
        assert_problem(answer, 504, "deadline_exceeded")
        assert scheduler.queued_labels == 1
        classifier.gate.set()
        assert stuck.result(PATIENCE_SECONDS).status_code == 201
    assert not {"new a", "new b"} & set(classifier.names)


def test_names_of_one_client_leave_room_for_another(slow_labels: tuple[Listening, SlowLabels], red: Path) -> None:
    """They stay connected: the other one is served in turn, and refused for nothing."""
    service, classifier = slow_labels
    scheduler = service.runtime.context.require_parts().models.served.engine.scheduler
    names = [[{"name": f"new {i} {j}"} for j in range(500)] for i in range(16)]
    with ExitStack() as stack, service.client(MODEST) as modest, ThreadPoolExecutor(1) as threads:
        open_all(stack, service.url, [json_request("POST", "/labels", {"labels": part}) for part in names])
        wait_until(lambda: scheduler.queued_labels >= 3500, "they are not queued")
        assert scheduler.queued_labels <= 4096
        with service.client(GREEDY) as greedy:
            answer = greedy.post("/labels", json={"labels": [{"name": f"new x{j}"} for j in range(500)]})
            assert assert_problem(answer, 429, "share_exceeded")["limit"] == "queued_labels"
        modest_answer = threads.submit(modest.post, "/labels", json={"name": "blue"})
        wait_until(lambda: len(scheduler._labels._queues) == 2, "it is not queued")
        classifier.gate.set()
        assert modest_answer.result(PATIENCE_SECONDS).status_code == 201
        # After those in a batch when it came, at most a batch of the others is encoded before.
        assert classifier.names.index("blue") <= 4 + 32
        assert classify(modest, red).status_code == 200


def test_requests_of_one_client_do_not_take_the_threads_of_another(
    slow_labels: tuple[Listening, SlowLabels],
) -> None:
    service, classifier = slow_labels
    with ExitStack() as stack, service.client(MODEST) as modest:
        requests = [json_request("POST", "/labels", {"name": f"new {i}"}) for i in range(100)]
        open_all(stack, service.url, requests)
        scheduler = service.runtime.context.require_parts().models.served.engine.scheduler
        wait_until(lambda: scheduler.queued_labels >= 32, "they are not at work")
        for _ in range(5):
            assert modest.get("/labels").status_code == 200
        assert not classifier.gate.is_set()


def test_256_slow_bodies_of_two_clients_refuse_nothing_of_others(tmp_path: Path, red: Path) -> None:
    """Before, every route answered 429 for minutes."""
    with listening(tmp_path / "data") as service, ExitStack() as stack, service.client(MODEST) as modest:
        slow_label = head("POST", "/labels", "Content-Type: application/json", "Content-Length: 100") + b"{"
        slow_video = classify_request(b"x" * 1000, {})[:400]
        for source in (GREEDY, "127.0.0.5"):
            open_all(stack, service.url, [slow_label, slow_video] * 64, source)
        wait_until(lambda: service.metric("vidlex_uploads_in_progress") >= 96, "they are not received")
        for name in ("red", "blue"):
            assert modest.post("/labels", json={"name": name}).status_code == 201
            assert classify(modest, red).status_code == 200
        with service.client(GREEDY) as greedy:
            answer = greedy.post("/labels", json={"name": "green"})
            assert assert_problem(answer, 429, "share_exceeded")["limit"] == "uploads"
            assert assert_problem(classify(greedy, red), 429, "share_exceeded")["limit"] in ("requests", "uploads")
        with service.client("127.0.0.4") as third:
            assert classify(third, red).status_code == 200


def test_a_flood_of_namespaces_takes_none_from_others(tmp_path: Path, red: Path) -> None:
    with listening(tmp_path / "data", max_namespaces=8) as service, service.client(MODEST) as modest:
        own = {"headers": {NAMESPACE_HEADER: "own"}}
        assert modest.post("/labels", json={"name": "red"}, **own).status_code == 201
        models = service.runtime.context.require_parts().models
        with service.client(GREEDY) as greedy:
            for i in range(40):
                assert greedy.get("/labels", headers={NAMESPACE_HEADER: f"n{i}"}).status_code == 200
                assert "own" in {v.namespace for v in models.served.open_vocabularies()}, "it was evicted"
        with ExitStack() as stack:
            lines = "Content-Type: application/json", "Content-Length: 100"
            slow = [head("POST", "/labels", *lines, f"{NAMESPACE_HEADER}: m{i}") + b"{" for i in range(40)]
            open_all(stack, service.url, slow)
            wait_until(lambda: models.served.num_users >= 4, "they are not at work")
            assert modest.post("/labels", json={"name": "blue"}, **own).status_code == 201
            for name in ("own", "second", "third"):
                assert modest.get("/labels", headers={NAMESPACE_HEADER: name}).status_code == 200
            with service.client(GREEDY) as greedy:
                answer = greedy.get("/labels", headers={NAMESPACE_HEADER: "one-more"})
                assert assert_problem(answer, 429, "share_exceeded")["limit"] == "namespaces"


def test_requests_at_work_are_shared(tmp_path: Path, red: Path) -> None:
    class SlowVideos(DummyClassifier):
        gate = threading.Event()

        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            if not (frames[0] == 127).all():  # the warm-up
                assert self.gate.wait(PATIENCE_SECONDS)
            return super().encode_video(frames)

    with listening(tmp_path / "data", SlowVideos(), max_waiting_videos=8) as service, ExitStack() as stack:
        video = red.read_bytes()
        open_all(stack, service.url, [classify_request(video, {"num_frames": 1}) for _ in range(8)])
        wait_until(lambda: service.metric("vidlex_videos_at_work") == 4, "they are not at work")
        with service.client(GREEDY) as greedy:
            assert assert_problem(classify(greedy, red), 429, "share_exceeded")["limit"] == "requests"
        with service.client(MODEST) as modest, ThreadPoolExecutor(1) as threads:
            answer = threads.submit(classify, modest, red)
            wait_until(lambda: service.metric("vidlex_videos_at_work") == 5, "the other one is refused")
            SlowVideos.gate.set()
            assert answer.result(PATIENCE_SECONDS).status_code == 200


def _seconds(answer: httpx.Response) -> float:
    return answer.elapsed.total_seconds()


def test_66_slow_files_of_one_client_do_not_keep_another_waiting(tmp_path: Path, red: Path) -> None:
    """Each holds its decode process for seconds: few bytes, but large frames, all of which are asked for."""
    slow = slow_video(seconds=2.0)
    with listening(tmp_path / "data", decode_workers=2) as service, ExitStack() as stack:
        started = time.monotonic()
        with service.client(MODEST) as modest:
            assert classify(modest, slow, num_frames=20, frame_policy="uniform").status_code == 200
        slow_seconds = time.monotonic() - started
        request = classify_request(slow, {"num_frames": 20, "frame_policy": "uniform"})
        open_all(stack, service.url, [request] * 66)
        wait_until(lambda: service.metric("vidlex_queued_videos") >= 20, "they are not queued")
        with service.client(MODEST) as modest:
            for _ in range(3):
                answer = classify(modest, red)
                assert answer.status_code == 200, answer.text
                assert _seconds(answer) < max(5.0, 3 * slow_seconds), "it waited for more than about one slow file"
        assert service.metric("vidlex_queued_videos") >= 10, "the slow ones were over before"
