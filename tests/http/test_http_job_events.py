"""Server-Sent Events of jobs over real sockets: resumed exactly, many at once, ended by a stop of the service."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis

from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_process
from support.processes import PATIENCE_SECONDS, until
from support.serving import colour_video
from vidlex.service.errors import InvalidParameter, NotFound, StoreUnavailable
from vidlex.service.http import job_events
from vidlex.service.jobs import keys
from vidlex.service.jobs.event_reader import EventReader, event_order
from vidlex.service.jobs.queue.transactions import EntryDamaged
from vidlex.service.jobs.records import Job, JobEvent

MAX_STREAMS_OF_ONE = job_events.MAX_STREAMS // 2


@dataclass(frozen=True)
class Service:
    url: str
    process: subprocess.Popen[str]
    files: HeldFiles
    client: httpx.Client
    data_dir: Path

    @property
    def log(self) -> str:
        return self.data_dir.with_suffix(".log").read_text()

    def submit(self, *, is_held: bool = False) -> tuple[str, str]:
        """The id of a job, and the URL that it reads."""
        url = self.files.hold("long.mp4") if is_held else f"{self.files.url}/long.mp4"
        answer = self.client.post("/jobs", json={"input": {"url": url}})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"], url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("events")
    colour_video(found / "long.mp4", "red", "green", "blue", frames_each=400)
    return found


def serving_from(folder: Path, name: str, stack: ExitStack) -> Service:
    files = stack.enter_context(held_files(folder))
    environment = {"VIDLEX_DECODE_WORKERS": "1", "VIDLEX_SHUTDOWN_GRACE_SECONDS": "600", **ENVIRONMENT}
    environment["VIDLEX_SEND_TIMEOUT_SECONDS"] = "1"
    url, process = stack.enter_context(live_process(folder / name, **environment))
    client = stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False))
    client.post("/labels", json={"name": "red"})
    return Service(url, process, files, client, folder / name)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        yield serving_from(folder, "data", stack)


def parse(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Ids, types and data."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines() if line and line[0] != ":")
        if "data" in lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


class RawStream:
    """A connection that reads only when the test asks."""

    def __init__(self, url: str, path: str, *, receive_bytes: int | None = None, **headers: str) -> None:
        address = httpx.URL(url)
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_SECONDS)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((address.host, address.port or 80))
        head = {"Host": address.netloc.decode(), **headers}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())

    def read_until(self, text: bytes) -> bytes:
        found = b""
        while text not in found:
            chunk = self.socket.recv(65536)
            if not chunk:
                return found
            found += chunk
        return found

    def close(self) -> None:
        self.socket.close()


def test_a_resumed_stream_has_each_event_once(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    path = f"/jobs/{job_id}/events"
    cut = RawStream(service.url, path)
    before = cut.read_until(b'"running"').decode()
    cut.close()
    assert before.startswith("HTTP/1.1 200") and "text/event-stream" in before and "retry: 1000" in before
    seen = [(line.removeprefix("id: ")) for line in before.splitlines() if line.startswith("id: ")]
    assert seen[0] == "0-1"
    with service.client.stream("GET", path, headers={"Last-Event-ID": seen[-1]}) as resumed:
        service.files.let(url)
        rest = parse(resumed.read().decode())
    ids = [*seen, *(event_id for event_id, _, _ in rest)]
    assert ids == sorted(set(ids), key=event_order)
    assert rest[-1][1:] == ("state", {"state": "succeeded", "attempts": 1})
    # All at once, and from the middle: the same, but for progress, of which the store keeps only the newest.
    whole = parse(service.client.get(path).text)
    assert [event for event in whole if event[0] not in ids] == []
    lasting = [event for event in rest if event[1] != "progress"]
    assert [event for event in whole if event[1] != "progress" and event[0] not in seen] == lasting
    assert {event[1] for event in whole} >= {"state", "labels"}
    middle = whole[len(whole) // 2][0]
    tail = parse(service.client.get(path, params={"after": middle}).text)
    assert tail == [event for event in whole if event_order(event[0]) > event_order(middle)]
    assert service.client.get(path, headers={"Last-Event-ID": whole[-1][0]}).status_code == 204


def test_many_readers_of_one_job_see_the_same(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    found: list[list[Any]] = []

    def read(after: str | None) -> None:
        params = {} if after is None else {"after": after}
        with httpx.stream(
            "GET", f"{service.url}/jobs/{job_id}/events", params=params, timeout=PATIENCE_SECONDS, trust_env=False
        ) as answer:
            found.append([event for event in parse(answer.read().decode()) if event[1] != "progress"])

    threads = [threading.Thread(target=read, args=(after,)) for after in (None, None, "0-1", "1-0")]
    for thread in threads:
        thread.start()
    until(lambda: service.client.get(f"/jobs/{job_id}").json()["state"] == "running")
    service.files.let(url)
    for thread in threads:
        thread.join()
    found.sort(key=len)
    assert found[0] == found[1] == found[2][1:] == found[3][1:] and found[2][0][0] == "0-1"


def test_idle_streams_hold_nothing_up_and_have_a_share(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    path = f"/jobs/{job_id}/events"
    streams = [RawStream(service.url, path, Accept="text/event-stream") for _ in range(MAX_STREAMS_OF_ONE)]
    for stream in streams:
        assert stream.read_until(b"0-1").startswith(b"HTTP/1.1 200")
    refused = service.client.get(path)
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (
        *(429, "share_exceeded"),
        "event_streams",
    )
    for name in ("livez", "readyz", "labels", "jobs"):
        assert service.client.get(f"/{name}").status_code == 200
    video = (service.files.folder / "long.mp4").read_bytes()
    assert service.client.post("/classify", files={"file": video}).status_code == 200
    for stream in streams[10:]:
        stream.close()
    # The places of clients that have left are free again.
    until(lambda: service.client.head(path).status_code == 200 and _opens(service.url, path))
    service.files.let(url)
    for stream in streams[:10]:
        assert b'"succeeded"' in stream.read_until(b'"succeeded"')
        stream.close()


def _opens(url: str, path: str) -> bool:
    stream = RawStream(url, path)
    opened = stream.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    stream.close()
    return opened


def test_a_client_that_does_not_read_is_disconnected(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    (path,) = service.data_dir.rglob("*.sock")
    store = redis.Redis(unix_socket_path=str(path))
    for number in range(800):
        store.xadd(keys.events(job_id), {"type": "labels", "data": json.dumps({"number": number, "x": "x" * 16_000})})
    store.close()
    stream = RawStream(service.url, f"/jobs/{job_id}/events", receive_bytes=4096)
    until(lambda: '"response_dropped"' in service.log)
    assert service.client.get("/livez").status_code == 200
    with pytest.raises(ConnectionError):
        while stream.socket.recv(1 << 20):
            pass
        raise ConnectionAbortedError("the end came before the last event")
    stream.close()
    service.files.let(url)
    whole = parse(service.client.get(f"/jobs/{job_id}/events").text)
    numbers = [data["number"] for _, kind, data in whole if kind == "labels" and "number" in data]
    assert numbers == list(range(800))[-len(numbers) :] and len(numbers) > 700


def test_a_cancelled_job_ends_its_streams(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    with service.client.stream("GET", f"/jobs/{job_id}/events") as answer:
        until(lambda: service.client.get(f"/jobs/{job_id}").json()["state"] == "running")
        assert service.client.delete(f"/jobs/{job_id}").status_code == 202
        service.files.let(url)
        states = [data for _, kind, data in parse(answer.read().decode()) if kind == "state"]
    assert [state["state"] for state in states] == ["queued", "running", "running", "cancelled"]
    assert states[2]["cancelling"]


def test_waiting_for_a_job_ends_with_it_or_with_the_time(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    path = f"/jobs/{job_id}"
    answer = service.client.get(path, headers={"Prefer": "wait=1"})
    assert answer.headers["preference-applied"] == "wait=1" and answer.json()["state"] in ("queued", "running")
    for ignored in ("wait=0", "wait=soon", "wait", "wait=-1"):
        assert "preference-applied" not in service.client.get(path, headers={"Prefer": ignored}).headers
    timer = threading.Timer(0.2, service.files.let, [url])
    timer.start()
    answer = service.client.get(path, headers={"Prefer": "wait=999999"})
    assert answer.headers["preference-applied"] == "wait=60" and answer.json()["state"] == "succeeded"


def test_requests_that_have_no_stream(service: Service) -> None:
    job_id, url = service.submit(is_held=True)
    path = f"/jobs/{job_id}/events"
    for text in ("x", "1-2-3", "-1", "9" * 30, "1-", str(2**64), f"1-{2**64}", "9" * 20):
        answer = service.client.get(path, headers={"Last-Event-ID": text})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter"), text
    assert service.client.get("/jobs/job_none/events").status_code == 404
    head = service.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    service.files.let(url)


def test_a_stop_of_the_service_ends_streams_first(folder: Path) -> None:
    """Its grace is ten minutes."""
    with ExitStack() as stack:
        service = serving_from(folder, "stopped", stack)
        job_id, _ = service.submit(is_held=True)
        stream = RawStream(service.url, f"/jobs/{job_id}/events")
        seen = stream.read_until(b'"running"')
        service.process.send_signal(signal.SIGTERM)
        rest = stream.read_until(b"0\r\n\r\n")
        stream.close()
        assert rest.endswith(b"0\r\n\r\n"), rest  # a complete body, not a broken connection
        assert b"succeeded" not in seen + rest
        service.files.let_all()
        assert service.process.wait(PATIENCE_SECONDS) in (0, -signal.SIGTERM)


@dataclass
class ScriptedStore:
    """Events of jobs, and how often they were asked for."""

    events: dict[str, list[JobEvent]] = field(default_factory=dict)
    failures: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def read(self, after: Mapping[str, str]) -> Mapping[str, Sequence[JobEvent]]:
        return self._answer("read", after)

    def poll(self, after: Mapping[str, str]) -> Mapping[str, Sequence[JobEvent]]:
        return self._answer("poll", after)

    def _answer(self, how: str, after: Mapping[str, str]) -> Mapping[str, Sequence[JobEvent]]:
        if not after:
            return {}
        self.asked.append((how, dict(after)))
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable
        known = {job_id: event_order(event_id) for job_id, event_id in after.items()}
        return {
            job_id: [event for event in self.events.get(job_id, []) if event_order(event.id) > order]
            for job_id, order in known.items()
        }


def state_event(event_id: str, state: str) -> JobEvent:
    return JobEvent(event_id, "state", {"state": state})


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    yield ScriptedStore()


def collect(store: ScriptedStore, get_job: Any, *, stop_after: int | None = None) -> list[bytes]:
    """The parts of a stream; the service stops after ``stop_after`` parts."""
    reader = EventReader(store.read, store.poll)
    parts: list[bytes] = []

    async def run() -> None:
        def is_stopping() -> bool:
            return stop_after is not None and len(parts) >= stop_after

        async for part in job_events.stream(reader, "job_a", "0-0", get_job, is_stopping):
            parts.append(part)

    try:
        anyio.run(run)
    finally:
        reader.close()
    return parts


async def no_job() -> Job:
    raise NotFound


def test_an_outage_of_the_store_is_survived(store: ScriptedStore) -> None:
    store.events["job_a"] = [state_event("1-0", "running"), state_event("2-0", "succeeded")]
    store.failures = 2
    parts = collect(store, no_job)
    assert [event[0] for event in parse(b"".join(parts).decode())] == ["1-0", "2-0"]


def test_a_job_whose_events_cannot_be_read_ends_its_own_stream(store: ScriptedStore) -> None:
    answer = store.read

    def read(after: Mapping[str, str]) -> Mapping[str, Sequence[JobEvent]]:
        if "job_a" in after:
            raise EntryDamaged
        return answer(after)

    store.events["job_b"] = [state_event("1-0", "running")]
    found: dict[str, object] = {}
    reader = EventReader(read, read)
    for job_id in ("job_a", "job_b"):
        reader.watch(job_id, "0-0", partial(found.__setitem__, job_id), at_once=False)
    until(lambda: len(found) == 2)
    reader.close()
    assert isinstance(found["job_a"], EntryDamaged) and found["job_b"] == store.events["job_b"]
    store.read = read  # type: ignore[method-assign]
    assert collect(store, no_job) == [b"retry: 1000\n\n"]


def test_comments_keep_a_stream_alive_until_its_job_is_gone(
    store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "KEEP_ALIVE_SECONDS", 0.0)
    asked: list[None] = []

    async def get_job() -> Job:
        asked.append(None)
        if len(asked) == 1:
            raise StoreUnavailable
        raise NotFound

    parts = collect(store, get_job)
    assert parts == [b"retry: 1000\n\n", b": keep-alive\n\n", b": keep-alive\n\n"]
    assert {how for how, _ in store.asked[1:]} == {"poll"}  # the first one looks for what was before


def test_ids_of_events() -> None:
    assert job_events.parse_event_id(None, "after") == "0-0"
    assert job_events.parse_event_id("17", "after") == "17-0"
    assert job_events.parse_event_id("17-18446744073709551615", "after") == "17-18446744073709551615"
    for text in ("17-", "99999999999999999999", f"17-{2**64}"):
        with pytest.raises(InvalidParameter):
            job_events.parse_event_id(text, "after")
