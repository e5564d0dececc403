"""Large JSON never blocks the event loop: its values are counted before it is parsed, and errors are few."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.live import live_process, live_service
from support.processes import until
from support.raw_http import connect, exchange, head, read_response
from vidlex.service.errors import JsonTooComplex
from vidlex.service.schemas.json_text import check_json

LIVE_SECONDS = 1.0  # promised for /livez
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("service") / "data") as url:
        yield url


class Probe:
    """Asks /livez all the time; ``slowest`` is the longest answer in seconds."""

    def __init__(self, url: str) -> None:
        self._url, self.slowest, self._stop = url, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            answer = exchange(self._url, head("GET", "/livez", "Connection: close"))
            assert answer is not None
            self.slowest = max(self.slowest, time.monotonic() - started)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def unknown_keys(number: int) -> bytes:
    return b"{" + b",".join(b'"%d":1' % i for i in range(number)) + b"}"


BODIES = {
    "690,000 unknown keys": unknown_keys(690_000),
    "unknown keys in a batch": b'{"labels":[' + b",".join([unknown_keys(200)] * 2500) + b"]}",
    "a list of numbers": b'{"name":"x","aliases":[' + b"1," * 3_000_000 + b"1]}",
    "empty lists": b"[" + b"[]," * 2_000_000 + b"[]]",
    "deep lists": b"[" * 8_000_000,
    "deep objects": b'{"a":' * 1_000_000,
    "metadata of many keys": b'{"name":"x","metadata":' + unknown_keys(300_000) + b"}",
    "escapes": b'{"name":"' + b"\\u0041" * 1_300_000 + b'"}',
    "backslashes": b'{"name":"' + b"\\\\" * 4_000_000 + b'"}',
    "quotes": b'"' * 8_000_000,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_does_not_delay_others(url: str, name: str) -> None:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, Probe(url) as probe:
        for path in ("/labels", "/labels:preview", "/models:prepare"):
            answer = client.post(path, content=BODIES[name], headers=JSON)
            assert answer.status_code in (400, 413, 422), answer.text[:200]
            assert len(answer.content) < 20_000
    assert probe.slowest < LIVE_SECONDS


@pytest.mark.parametrize("name", ["690,000 unknown keys", "a list of numbers", "deep lists"])
def test_large_params_of_a_video_do_not_delay_others(url: str, name: str) -> None:
    params = BODIES[name][: 1 << 20]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, Probe(url) as probe:
        for _ in range(4):
            answer = client.post("/classify", files={"file": b"x"}, data={"params": params})
            assert answer.status_code in (400, 413, 422), answer.text[:200]
    assert probe.slowest < LIVE_SECONDS


def test_a_batch_of_invalid_items_gives_one_short_error_each(url: str) -> None:
    labels = [{f"k{i}": 1 for i in range(number)} for number in (90, 250) for _ in range(500)]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, Probe(url) as probe:
        answer = client.post("/labels", json={"labels": labels})
    assert answer.status_code == 200
    assert len(answer.content) < 1_000_000
    assert all(item["error"]["code"] == "invalid_parameter" for item in answer.json()["data"])
    assert probe.slowest < LIVE_SECONDS


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/labels?" + "&".join(f"a{i}=1" for i in range(4000)), 414),
        ("/labels?" + "&".join(f"a{i}=1" for i in range(1500)), 400),
        ("/" + "a" * 20_000, 414),
        ("/labels?q=" + "%41" * 9_000, 414),
    ],
)
def test_long_paths_and_queries(url: str, target: str, status: int) -> None:
    answer = exchange(url, head("GET", target))
    assert answer is not None
    assert answer.status == status
    assert len(answer.body) < 20_000


LONG_HEADS = {
    "200 headers": ["a: b"] * 200,
    "headers of 250 KB": ["a: b"] * 40_000,
    "headers of 2 MB": ["a: b"] * 300_000,
    "a long header": ["a: " + "b" * 40_000],
    "a long folded header": ["a: b", *[" c"] * 10_000],
}


@pytest.mark.parametrize("before", [b"", head("GET", "/livez")], ids=["first", "pipelined"])
@pytest.mark.parametrize("name", LONG_HEADS)
def test_long_heads_are_refused_unread(url: str, name: str, before: bytes) -> None:
    with Probe(url) as probe, ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in range(30)]
        for connection in connections:
            with suppress(OSError):  # closed by then
                connection.sendall(before + head("GET", "/labels", *LONG_HEADS[name]))
        for connection in connections:
            if before:
                first = read_response(connection)
                assert first is None or first.status == 200
            answer = read_response(connection)
            assert answer is None or (answer.status == 400 and answer.json()["code"] == "malformed")
    assert probe.slowest < LIVE_SECONDS


def test_a_head_may_have_many_headers(url: str) -> None:
    answer = exchange(url, head("GET", "/labels", *["a: " + "b" * 200] * 100))
    assert answer is not None
    assert answer.status == 200


def test_ordinary_large_bodies_are_accepted(url: str) -> None:
    labels = [{"name": f"vector {i}", "metadata": {"vector": [0.5] * 200, "text": '", [{\\' * 50}} for i in range(500)]
    answer = httpx.post(f"{url}/labels", json={"labels": labels}, timeout=60, trust_env=False)
    assert {item["status"] for item in answer.json()["data"]} == {201}


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES, st.booleans(), st.booleans())
@example({'"[{,\\': ['\\"', "\\\\", "]"]}, True, False)
@example(["\\" * 70_000 + '"', 1, "," * 70_000, [[]]], True, True)
def test_values_and_levels_are_counted(value: Any, is_ascii: bool, is_indented: bool) -> None:
    data = json.dumps(value, ensure_ascii=is_ascii, indent=1 if is_indented else None).encode(errors="replace")
    num_values, num_levels = count(value)
    check_json(data, name="It", max_values=num_values, max_levels=num_levels)
    if num_levels:
        with pytest.raises(JsonTooComplex):
            check_json(data, name="It", max_values=num_values, max_levels=num_levels - 1)
    if num_values:
        with pytest.raises(JsonTooComplex):
            check_json(data, name="It", max_values=num_values - 1, max_levels=num_levels)


def count(value: Any) -> tuple[int, int]:
    """Commas and containers, and levels."""
    if not isinstance(value, (list, dict)):
        return 0, 0
    inner = [count(member) for member in (value.values() if isinstance(value, dict) else value)]
    num_values = 1 + max(0, len(inner) - 1) + sum(number for number, _ in inner)
    return num_values, 1 + max((levels for _, levels in inner), default=0)


def test_unfinished_bodies_take_little_memory(tmp_path: Path) -> None:
    with live_process(tmp_path / "data") as (url, process), ExitStack() as stack:
        resident = psutil.Process(process.pid).memory_info
        before = resident().rss
        request = head("POST", "/labels", "Content-Type: application/json", "Content-Length: 8000000")
        connections = [stack.enter_context(connect(url)) for _ in range(50)]
        for connection in connections:
            with suppress(OSError):  # refused
                connection.sendall(request + b'{"' + b"x" * 7_000_000)
        assert resident().rss - before < 200 << 20
        answer = read_response(connections[-1])
        assert answer is not None
        assert answer.status == 429
        assert answer.json()["limit"] == "json_bytes"
        body = b'{"name": "red"}'
        length = f"Content-Length: {len(body)}"
        small = head("POST", "/labels", "Content-Type: application/json", length) + body
        other = exchange(url, small, source="127.0.0.2")
        assert other is not None
        assert other.status == 201
        for connection in connections:
            connection.close()
        until(lambda: (again := exchange(url, small)) is not None and again.status == 409)


def test_the_bytes_of_a_body_are_bounded(tmp_path: Path) -> None:
    with live_service(tmp_path / "data", VIDLEX_MAX_JSON_BYTES="2000") as url:
        answer = httpx.post(f"{url}/labels", content=b"[" + b" " * 3000 + b"]", headers=JSON, trust_env=False)
        assert answer.status_code == 413
