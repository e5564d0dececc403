"""A request has one end: what a proxy could read in another way is refused, and nothing goes on without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.live import live_service
from support.raw_http import connect, exchange, head, read_response, send_until_closed

CHUNKED = b"0\r\n\r\n"  # as a chunked body: empty; by Content-Length: 5 bytes
SMUGGLED = head("GET", "/labels")
MAX_EPILOGUE_BYTES = 32 << 20  # with the kernel's buffers


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("service") / "data") as url:
        yield url


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("content-length: 5", "TRANSFER-ENCODING: Chunked"),
        ("Content-Length: 5", "Transfer-Encoding:\tchunked"),
        ("Content-Length: 5", "Transfer-Encoding: identity"),
        ("Content-Length: 5", "Transfer-Encoding: chunked, identity"),
        ("Content-Length: 5", "Transfer-Encoding: xchunked"),
        ("Content-Length: 5", "Transfer-Encoding : chunked"),
        ("Content-Length: 5", "Transfer-Encoding:"),
        ("Content-Length: 5", "Transfer_Encoding: chunked"),
        ("Content_Length: 6", "Content-Length: 5"),
        ("Content-Length: 5", "X: y", " Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: 5\x0b",),
        ("Content-Length: -1",),
        ("Content-Length: 5;",),
        ("X: a\rContent-Length: 5",),
        ("X: \x00", "Content-Length: 5"),
    ],
)
def test_ambiguous_lengths_close_the_connection(url: str, version: str, lines: tuple[str, ...]) -> None:
    request = head("POST", "/labels", "Content-Type: application/json", *lines).replace(b"HTTP/1.1", b"HTTP/1.0")
    request = request.replace(b"HTTP/1.0", f"HTTP/{version}".encode(), 1)
    with connect(url) as connection:
        connection.sendall(request + CHUNKED + SMUGGLED)
        answer = read_response(connection)
        assert answer is not None
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "malformed"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert read_response(connection) is None, "what follows is no request"


def test_http_1_0_has_no_chunks(url: str) -> None:
    request = head("POST", "/labels", "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = exchange(url, request + CHUNKED)
    assert answer is not None
    assert answer.status == 400


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("where", ["epilogue", "preamble", "header", "unknown part"])
def test_a_multipart_body_without_end_is_refused(url: str, where: str, is_chunked: bool) -> None:
    """The video is small: the rest of the body counts as well."""
    begin, rest = {
        "epilogue": (_part("file", b"x") + b"--b--\r\n", b"x" * 65536),
        "preamble": (b"", b"x" * 65536),
        "header": (b"--b\r\nContent-Disposition: ", b"x" * 65536),
        "unknown part": (b"--b\r\nContent-Disposition: form-data; name=other\r\n\r\n", b"x" * 65536),
    }[where]
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {500 << 20}"
    with connect(url) as connection:
        connection.sendall(head("POST", "/classify", "Content-Type: multipart/form-data; boundary=b", length))
        connection.sendall(_chunk(begin) if is_chunked and begin else begin)
        num_bytes = send_until_closed(connection, _chunk(rest) if is_chunked else rest, 200 << 20)
    assert num_bytes < MAX_EPILOGUE_BYTES
    answer = exchange(url, head("GET", "/livez"))
    assert answer is not None
    assert answer.status == 200


def _part(name: str, data: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + data + b"\r\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"
