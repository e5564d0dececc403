"""Silent, half-finished and never-reading connections take nothing from other clients."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from support.live import live_process, live_service, wait_ready
from support.processes import until
from support.raw_http import connect, exchange, head, is_closed, read_response, send_until_closed
from vidlex.service.http.connections import ConnectionLimits, Connections
from vidlex.service.http.limited_protocol import protocol_of

LIVE_SECONDS = 1.0  # promised for /livez
NUM_SILENT = 1200
BODY_TO_COME = head("POST", "/labels", "Content-Type: application/json", "Content-Length: 100") + b"{"
PROBE = head("GET", "/livez")


@pytest.fixture(scope="module", autouse=True)
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def service_with_descriptors(folder: Path, number: int) -> Iterator[str]:
    """A service that can open ``number`` files."""
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", "dummy", "--json"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number)),  # noqa: PLW1509
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        url = str(json.loads(line)["url"])
        wait_ready(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def assert_live(url: str, source: str = "127.0.0.1") -> None:
    started = time.monotonic()
    answer = exchange(url, PROBE, source=source)
    assert answer is not None
    assert answer.status == 200
    assert time.monotonic() - started < LIVE_SECONDS


@pytest.mark.parametrize("begin", [b"", b"GET /labels HTTP/1.1\r\nHost: loc"], ids=["silent", "half a head"])
def test_1200_connections_that_ask_nothing(tmp_path: Path, begin: bytes) -> None:
    with service_with_descriptors(tmp_path, 1024) as url, ExitStack() as stack:
        for _ in range(NUM_SILENT):
            connection = stack.enter_context(connect(url))
            connection.sendall(begin)
        for _ in range(5):
            assert_live(url)
        answer = exchange(url, head("GET", "/labels"))
        assert answer is not None
        assert answer.status == 200, "others are served as well"


def test_too_few_descriptors_refuse_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), service_with_descriptors(tmp_path, 256):
        pass
    assert "256 files may be open" in (tmp_path / "log").read_text()


def test_the_soft_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip("the hard limit is low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with live_process(tmp_path / "data", VIDLEX_MAX_CONNECTIONS="4000") as (_, process):
            raised, _ = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)
            assert raised > 4000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_connections_are_closed(tmp_path: Path) -> None:
    with live_service(tmp_path / "data", VIDLEX_HEADER_TIMEOUT_SECONDS="1", VIDLEX_KEEP_ALIVE_SECONDS="1") as url:
        for begin in (b"", b"GET", head("GET", "/labels")[:-2]):
            with connect(url) as connection:
                connection.sendall(begin)
                assert is_closed(connection)
        with connect(url) as connection:
            connection.sendall(PROBE)
            assert read_response(connection) is not None
            assert is_closed(connection), "between two requests"


def test_a_head_one_byte_at_a_time_has_the_same_limit(tmp_path: Path) -> None:
    with live_service(tmp_path / "data", VIDLEX_HEADER_TIMEOUT_SECONDS="1") as url, connect(url) as connection:
        started = time.monotonic()
        try:
            for byte in head("GET", "/labels", "X: " + "y" * 1000):
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - started < 60


def test_busy_connections_at_the_limit_leave_the_probes_answerable(tmp_path: Path) -> None:
    with (
        live_service(tmp_path / "data", VIDLEX_MAX_CONNECTIONS="16") as url,
        ExitStack() as stack,
    ):
        time.sleep(0.1)
        busy = [stack.enter_context(connect(url)) for _ in range(16)]
        for connection in busy:
            connection.sendall(BODY_TO_COME)
        until(lambda: (answer := exchange(url, head("GET", "/labels"))) is not None and answer.status == 429)
        answer = exchange(url, head("GET", "/labels"))
        assert answer is not None
        assert answer.json()["code"] == "too_many_connections"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        for _ in range(200):  # silent ones do not use up the reserve either
            stack.enter_context(connect(url))
        assert_live(url)
        for connection in busy:
            connection.close()
        until(lambda: (answer := exchange(url, head("GET", "/labels"))) is not None and answer.status == 200)


def test_one_address_leaves_places_to_others(tmp_path: Path) -> None:
    limits = {"VIDLEX_MAX_CONNECTIONS": "32", "VIDLEX_MAX_CONNECTIONS_PER_ADDRESS": "8"}
    with live_service(tmp_path / "data", **limits) as url, ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(url, source="127.0.0.2")).sendall(BODY_TO_COME)
        until(
            lambda: (
                (answer := exchange(url, head("GET", "/labels"), source="127.0.0.2")) is not None
                and answer.status == 429
            )
        )
        for _ in range(100):
            stack.enter_context(connect(url, source="127.0.0.2"))
        kept = stack.enter_context(connect(url, source="127.0.0.3"))
        answer = exchange(url, head("GET", "/labels"), source="127.0.0.3")
        assert answer is not None
        assert answer.status == 200
        assert_live(url, source="127.0.0.2")
        assert not is_closed(kept, 0.1), "idle connections of others are kept"


def test_addresses_in_forwarded_headers_do_not_evade_the_limit(tmp_path: Path) -> None:
    limits = {"VIDLEX_MAX_CONNECTIONS": "32", "VIDLEX_MAX_CONNECTIONS_PER_ADDRESS": "8"}
    with live_service(tmp_path / "data", **limits) as url, ExitStack() as stack:
        for number in range(8):
            busy = BODY_TO_COME.replace(b"Host:", f"X-Forwarded-For: 10.0.0.{number}\r\nHost:".encode())
            stack.enter_context(connect(url)).sendall(busy)
        until(lambda: (answer := exchange(url, head("GET", "/labels"))) is not None and answer.status == 429)


def test_clients_that_never_read_are_disconnected(tmp_path: Path) -> None:
    limits = {"VIDLEX_SEND_TIMEOUT_SECONDS": "2", "VIDLEX_KEEP_ALIVE_SECONDS": "600"}
    with live_service(tmp_path / "data", **limits) as url, ExitStack() as stack:
        fill(url, 400)
        page = head("GET", "/labels?limit=1000")
        readers = [stack.enter_context(connect(url, receive_bytes=4096)) for _ in range(10)]
        for connection in readers:
            for _ in range(10):  # more than the kernel's buffers hold
                connection.sendall(page)
        for connection in readers:
            assert is_closed(connection)
        assert_live(url)


def test_a_client_that_reads_slowly_gets_everything(tmp_path: Path) -> None:
    with live_service(tmp_path / "data", VIDLEX_SEND_TIMEOUT_SECONDS="2") as url:
        fill(url, 120)
        with connect(url, receive_bytes=4096) as connection:
            connection.sendall(head("GET", "/labels?limit=120", "Connection: close"))
            received = b""
            while chunk := connection.recv(20_000):
                received += chunk
                if len(received) < 1_000_000:
                    time.sleep(0.1)
        body = json.loads(received.partition(b"\r\n\r\n")[2])
        assert len(body["data"]) == 120


def test_unread_bytes_of_all_clients_are_bounded() -> None:
    """The longest unread answers of the address with the most are dropped, and a client that reads gets its own."""
    answer_bytes, limit_bytes = 12 << 20, 30 << 20

    async def large_app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(answer_bytes).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(answer_bytes)})

    async def run() -> None:
        protocol = protocol_of(Connections(ConnectionLimits(max_unsent_bytes=limit_bytes)))
        config = uvicorn.Config(large_app, log_config=None, lifespan="off", ws="none", http=protocol)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            unread = [await asyncio.to_thread(connect, url, receive_bytes=4096) for _ in range(8)]
            for connection in unread:
                connection.sendall(head("GET", "/"))
                await asyncio.sleep(0.2)
            held = sum(connection.transport.get_write_buffer_size() for connection in state.connections)
            assert held < limit_bytes
            assert is_closed(unread[0])
            assert not is_closed(unread[-1], 0.1)
            good = await asyncio.to_thread(exchange, url, head("GET", "/"), source="127.0.0.2")
            assert good is not None
            assert len(good.body) == answer_bytes
            for connection in unread:
                connection.close()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/models:rollback", "/labels", "/none"])
def test_a_body_that_is_not_read_does_not_go_on_for_ever(tmp_path: Path, path: str) -> None:
    with live_service(tmp_path / "data") as url, connect(url) as connection:
        connection.sendall(head("POST", path, "Content-Type: text/plain", "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        assert send_until_closed(connection, chunk, 200 << 20) < 64 << 20


def fill(url: str, number: int) -> None:
    """Register labels with 16 KB of metadata each."""
    for start in range(0, number, 50):
        numbers = range(start, min(number, start + 50))
        labels = [{"name": f"label {i}", "metadata": {"text": "x" * 16_000}} for i in numbers]
        answer = httpx.post(f"{url}/labels", json={"labels": labels}, timeout=60, trust_env=False)
        assert answer.status_code == 200


def test_a_socket_can_be_bound_to_another_loopback_address() -> None:
    """Of this machine, which the tests of addresses require."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
