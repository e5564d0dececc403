"""Which requests are repeated, when, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from support.client_kinds import KINDS, opened
from support.scripted_http import Answer, ScriptedServer, problem, scripted
from vidlex.service.client import calls, errors
from vidlex.service.client.async_client import AsyncClient
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.exchange import Call, Pause, Reply, Send, exchange

READY: dict[str, Any] = {"status": "ready", "checks": {}}
LABEL: dict[str, Any] = {
    "object": "label", "id": "lbl_1", "name": "red", "aliases": [], "categories": [], "parents": [],
    "threshold": None, "metadata": {}, "created_at_ms": 1, "updated_at_ms": 1, "revision": 1, "warnings": [],
    "etag": "1-a", "member_of_tomorrow": {"a": [1]},
}  # fmt: skip
BUSY = problem(429, "overloaded", retry_after=0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted() as found:
        yield found


# --- the decisions, with a clock of the test


def reply(status: int, code: str, **headers: str) -> Reply:
    body = f'{{"detail": "d", "code": "{code}"}}' if code else ""
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body.encode())


def broken() -> errors.ConnectionFailed:
    error = errors.ConnectionFailed("broken")
    error.was_connected = True
    return error


def pauses(
    call: Call[Any], answers: Iterator[Any], policy: RetryPolicy = RetryPolicy(), seconds_each: float = 0.0
) -> tuple[list[float], errors.VidlexClientError | None]:
    """Seconds before each repetition, and the error at the end."""
    now, found = 0.0, []
    steps = exchange(call, policy, lambda: now)
    got: Any = None
    try:
        while True:
            step = steps.send(got)
            if isinstance(step, Pause):
                found.append(step.seconds)
                now += step.seconds
                got = None
            else:
                assert isinstance(step, Send)
                now += seconds_each
                got = next(answers)
    except StopIteration:
        return found, None
    except errors.VidlexClientError as error:
        return found, error


def repeated(answer: Any) -> Iterator[Any]:
    return itertools.repeat(answer)


DELETE = calls.delete_label("lbl_1", if_match=None)
CREATE = calls.create_label("red", {}, if_exists="error", idempotency_key=None)
GET = calls.get_label("lbl_1")


def test_a_retry_after_is_obeyed_and_its_slot_is_met() -> None:
    """The service keeps a place from that moment on for 1.5 s."""
    for _ in range(50):
        waited, error = pauses(DELETE, repeated(reply(429, "overloaded", retry_after="7")))
        assert all(7.0 <= seconds <= 7.5 for seconds in waited) and len(waited) >= 7
        assert isinstance(error, errors.Busy)
    assert len(set(waited)) > 1, "clients that were refused together do not return together"


def test_the_total_time_is_bounded() -> None:
    policy = RetryPolicy(max_seconds=30.0)
    waited, _ = pauses(GET, repeated(reply(503, "model_loading", retry_after="2")), policy)
    assert 11 <= len(waited) <= 15 and sum(waited) <= 30
    waited, error = pauses(GET, repeated(reply(503, "model_loading", retry_after="31")), policy)
    assert waited == [] and error is not None, "a later time is not waited for, and no one returns too early"


def test_time_before_the_first_refusal_does_not_count() -> None:
    """An upload of ten minutes that is refused at its end is repeated."""
    answers = iter([reply(429, "overloaded", retry_after="1"), Reply(204, {"x-vidlex-revision": "3"}, b"")])
    waited, error = pauses(DELETE, answers, RetryPolicy(max_seconds=10.0), seconds_each=600.0)
    assert len(waited) == 1 and error is None


def test_a_date_is_a_time_too() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    waited, _ = pauses(GET, iter([reply(429, "overloaded", retry_after=later), reply(404, "not_found")]))
    assert 15 <= waited[0] <= 20.5
    for odd in ("soon", "-5", "nan", "1e400", "", "Fri, 99 Foo 2026"):
        waited, _ = pauses(GET, iter([reply(429, "overloaded", retry_after=odd), reply(404, "not_found")]))
        assert all(0 < seconds < 1 for seconds in waited), odd


@pytest.mark.parametrize(
    ("call", "answer", "is_repeated"),
    [
        (DELETE, reply(429, "rate_limited", retry_after="1"), True),
        (DELETE, reply(503, "model_loading", retry_after="1"), True),
        (DELETE, reply(503, "stopping", retry_after="1"), False),
        (DELETE, reply(502, ""), False),
        (DELETE, broken(), False),
        (DELETE, errors.ConnectionFailed("refused"), True),
        (CREATE, broken(), True),
        (CREATE, reply(409, "idempotency_in_flight", retry_after="1"), True),
        (CREATE, reply(409, "label_exists"), False),
        (GET, broken(), True),
        (GET, reply(503, "stopping", retry_after="1"), True),
        (GET, reply(502, ""), True),
        (GET, reply(503, "proxy_error"), True),
        (GET, reply(504, ""), False),
        (GET, reply(500, "internal_error"), False),
        (GET, reply(503, "store_unavailable", retry_after="2"), False),
        (GET, reply(401, "unauthorized"), False),
        (GET, errors.TimedOut("late"), False),
        (GET, errors.TlsFailed("certificate"), False),
    ],
)
def test_what_is_repeated(call: Call[Any], answer: Any, is_repeated: bool) -> None:
    waited, error = pauses(call, repeated(answer))
    assert bool(waited) == is_repeated and error is not None


def test_broken_and_refused_connections_are_repeated_a_few_times() -> None:
    waited, _ = pauses(GET, repeated(broken()))
    assert len(waited) == 3
    waited, _ = pauses(GET, repeated(errors.ConnectionFailed("refused")), RetryPolicy(connect_seconds=60.0))
    assert 8 <= len(waited) <= 25 and sum(waited) <= 60
    one_answer_between = itertools.cycle([broken(), broken(), reply(429, "overloaded", retry_after="1")])
    waited, error = pauses(GET, one_answer_between)
    assert isinstance(error, errors.Busy) and sum(waited) > 55, "they count in a row"


def test_a_stream_that_cannot_seek_is_sent_once() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    call = calls.classify(Pipe(b"x"), {}, on_progress=None)
    waited, error = pauses(call, repeated(reply(429, "overloaded", retry_after="1")))
    assert waited == [] and isinstance(error, errors.Busy)


# --- over sockets


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_request_is_sent_again_as_it_was(server: ScriptedServer, kind: str) -> None:
    server.answers = [BUSY, problem(503, "model_loading", retry_after=0), Answer(201, LABEL)]
    with opened(kind, server.url) as client:
        label = client.create_label("red", categories=["colour"], threshold=None)
    assert label.id == "lbl_1" and not hasattr(label, "member_of_tomorrow")
    assert len(server.asked) == 3
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert [len(key) for key in keys] == [32]
    assert {asked.body for asked in server.asked} == {b'{"name": "red", "categories": ["colour"], "threshold": null}'}
    server.asked.clear()
    with opened(kind, server.url) as client:
        client.create_label("red")
        client.create_label("red", idempotency_key="mine")
        client.create_label("red", if_exists="return")
    sent = [asked.headers.get("idempotency-key") for asked in server.asked]
    assert sent[0] is not None and sent[0] not in keys and sent[1:] == ["mine", None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("breaks", ["silent", "half"])
def test_a_broken_connection_is_survived_where_it_is_safe(server: ScriptedServer, kind: str, breaks: str) -> None:
    cut = Answer(200, LABEL, breaks=breaks)
    with opened(kind, server.url) as client:
        server.answers = [cut, cut, Answer(200, LABEL)]
        assert client.get_label("lbl_1").name == "red"
        server.answers = [cut, Answer(201, LABEL)]
        assert client.create_label("red").name == "red"
        assert len(server.asked) == 5
        server.answers = [cut, Answer(200, LABEL)]
        with pytest.raises(errors.ConnectionFailed) as caught:
            client.update_label("lbl_1", name="blue")
        assert caught.value.was_connected and len(server.asked) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_sent_again_from_where_it_began(server: ScriptedServer, kind: str) -> None:
    server.answers = [BUSY, BUSY, problem(422, "undecodable_video")]
    file = io.BytesIO(b"skipped" + b"v" * 1_000_000)
    file.seek(7)
    seen: list[tuple[int, int | None]] = []
    with opened(kind, server.url) as client, pytest.raises(errors.VideoInvalid):
        client.classify(file, on_progress=lambda sent, total: seen.append((sent, total)), top_k=3)
    assert len({asked.num_bytes for asked in server.asked}) == 1 and len(server.asked) == 3
    first = server.asked[0]
    assert first.num_bytes == int(first.headers["content-length"])
    assert b'{"top_k": 3}' in first.body and b"skipped" not in first.body and first.body.count(b"v" * 1000) >= 990
    assert seen.count((1_000_000, 1_000_000)) == 3
    assert [sent for sent, _ in seen] == 3 * sorted({sent for sent, _ in seen})


def test_a_service_that_is_not_there(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    for kind in KINDS:
        with opened(kind, url, retries=RetryPolicy(connect_seconds=0.3)) as client:
            with pytest.raises(errors.ConnectionFailed, match=url) as caught:
                client.ready()
            assert not caught.value.was_connected and caught.value.status is None
    with (
        opened("sync", "http://no-such-host.invalid", retries=RetryPolicy(connect_seconds=0.0)) as client,
        pytest.raises(errors.ConnectionFailed, match=r"no-such-host\.invalid"),
    ):
        client.ready()


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_service_is_a_timeout(kind: str, port_in_use: int) -> None:
    with (
        opened(kind, f"http://127.0.0.1:{port_in_use}", timeout_seconds=0.2) as client,
        pytest.raises(errors.TimedOut, match="did not answer in time"),
    ):
        client.ready()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_drained", [0, 2**20])
def test_a_refusal_before_the_upload_is_heard(kind: str, num_drained: int, tmp_path: Path) -> None:
    """The service answers after the headers, takes a MiB more and closes: the rest of the video is in the way."""
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(48 * 2**20)
    num_refused = 0

    def refuse(listener: socket.socket) -> None:
        nonlocal num_refused
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                received = connection.recv(65_536)
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65_536)
                num_refused += 1
                body = b'{"detail": "d", "code": "share_exceeded"}'
                head = b"HTTP/1.1 429 x\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                connection.sendall(head % len(body) + body)
                drained = 0
                while drained < num_drained and (data := connection.recv(65_536)):
                    drained += len(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        retries = RetryPolicy(max_seconds=2.0, max_broken_connections=0)
        with opened(kind, url, retries=retries) as client, pytest.raises(errors.Busy) as caught:
            client.classify(path)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert caught.value.code == "share_exceeded" and num_refused > 2


def test_a_cancelled_upload_ends(port_in_use: int) -> None:
    """Its server reads nothing, so that it waits in a write."""

    async def cancel() -> None:
        async with AsyncClient(f"http://127.0.0.1:{port_in_use}") as client:
            task = asyncio.create_task(client.classify(bytes(64 * 2**20)))
            await asyncio.sleep(0.3)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
