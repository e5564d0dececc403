"""Downloads from real servers on this machine, which the policy of each test allows or not."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.wire_server import Answer, wire_server
from vidlex.service.errors import FetchFailed, Overloaded, StorageFull, UrlRefused
from vidlex.service.outbound.addresses import Address
from vidlex.service.outbound.limits import Limits
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Downloaded, Outbound

LOOPBACK = UrlPolicy.configured(["*"], ["127.0.0.1/32"])
BODY = bytes(range(256)) * 1000


def fetch(
    url: str,
    path: Path,
    *,
    policy: UrlPolicy = LOOPBACK,
    resolve: Callable[[str, int], list[Address]] | None = None,
    max_bytes: int = 10 << 20,
    seconds: float = 30.0,
    cancelled: threading.Event | None = None,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
) -> Downloaded:
    outbound = Outbound(policy) if resolve is None else Outbound(policy, resolve=resolve)
    return outbound.download(
        url,
        path,
        max_bytes=max_bytes,
        deadline=time.monotonic() + seconds,
        cancelled=cancelled or threading.Event(),
        on_bytes=on_bytes,
    )


def answer(body: bytes = BODY, status: str = "200 OK", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def send(connection: socket.socket, _: bytes) -> None:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return send


def addresses(*texts: str) -> list[Address]:
    return [ipaddress.ip_address(text) for text in texts]


def test_a_file_is_stored_with_its_digest(tmp_path: Path) -> None:
    path, seen = tmp_path / "video", list[tuple[int, int | None]]()
    with wire_server(answer(Content_Type="video/mp4")) as server:
        done = fetch(f"{server.url}/a%20b?x=1&y", path, on_bytes=lambda *counts: seen.append(counts))
        head = server.heads[0].decode().lower()
    assert done == Downloaded(path, hashlib.sha256(BODY).hexdigest(), len(BODY), "video/mp4")
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert head.startswith("get /a%20b?x=1&y http/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}\r\n" in head
    assert "accept-encoding: identity\r\n" in head


def test_a_body_in_chunks_and_one_that_ends_with_the_connection(tmp_path: Path) -> None:
    def chunked(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BODY), 1000):
            part = BODY[start : start + 1000]
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")

    def closing(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)

    for way in (chunked, closing):
        with wire_server(way) as server:
            assert fetch(f"{server.url}/", tmp_path / "video").num_bytes == len(BODY)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (answer(status="404 Not Found"), "status 404"),
        (answer(status="206 Partial Content"), "status 206"),
        (answer(status="304 Not Modified", body=b""), "status 304"),
        (answer(gzip.compress(bytes(10 << 20)), Content_Encoding="gzip"), "Content-Encoding"),
        (answer(Content_Encoding="br, gzip"), "Content-Encoding"),
        (answer(bytes((10 << 20) + 1)), "more than"),
        (answer(X_Large="x" * 200_000), "does not speak HTTP"),
        (answer(BODY, "200 OK", **{f"X_{number}": "x" * 1000 for number in range(200)}), "does not speak HTTP"),
        (answer(Transfer_Encoding="gzip, chunked"), "does not speak HTTP"),
        (lambda connection, _: connection.sendall(b"220 mail.example ESMTP\r\n"), "does not speak HTTP"),
        (lambda connection, _: connection.sendall(b"-ERR unknown command\r\n"), "does not speak HTTP"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), "broke"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "broke"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"), "broke"),
        (lambda connection, _: connection.close(), "broke"),
    ],
)
def test_answers_that_are_no_file(tmp_path: Path, answers: Answer, says: str) -> None:
    path = tmp_path / "video"
    with wire_server(answers) as server, pytest.raises(FetchFailed, match=says) as failed:
        fetch(f"{server.url}/secret-path", path)
    assert not path.exists()
    assert "127.0.0.1" not in str(failed.value) and "secret" not in str(failed.value)


def test_an_endless_body_is_cut(tmp_path: Path) -> None:
    def endless(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + bytes(65_536) + b"\r\n")

    with wire_server(endless) as server, pytest.raises(FetchFailed, match="more than 1000000 bytes"):
        fetch(f"{server.url}/", tmp_path / "video", max_bytes=1_000_000)
    assert not (tmp_path / "video").exists()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n"])
def test_a_server_that_drips_is_left_in_time(tmp_path: Path, start: bytes) -> None:
    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start or b"HTTP/1.1 200 OK\r\n")
        while not server.ended.wait(0.05):
            connection.sendall(b"x" if start else b"X-A: b\r\n")

    with wire_server(drip) as server, pytest.raises(FetchFailed, match="in time"):
        fetch(f"{server.url}/", tmp_path / "video", seconds=0.8)


def test_a_head_that_never_ends_and_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.outbound.limits.HEAD_SECONDS", 0.5)
    monkeypatch.setattr("vidlex.service.outbound.connecting.IDLE_SECONDS", 0.4)

    def informs(connection: socket.socket, _: bytes) -> None:
        while not server.ended.wait(0.02):
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")

    def silent(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        server.ended.wait()

    with wire_server(informs) as server, pytest.raises(FetchFailed, match="did not answer in time"):
        fetch(f"{server.url}/", tmp_path / "video")
    with wire_server(silent) as server, pytest.raises(FetchFailed, match="sends nothing"):
        fetch(f"{server.url}/", tmp_path / "video")


def test_a_cancelled_download_ends(tmp_path: Path) -> None:
    cancelled = threading.Event()

    def slow(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        cancelled.set()
        server.ended.wait()

    with wire_server(slow) as server, pytest.raises(FetchFailed, match="cancelled"):
        fetch(f"{server.url}/", tmp_path / "video", cancelled=cancelled)
    assert not (tmp_path / "video").exists()


def test_a_full_disk_is_not_the_fault_of_the_server(tmp_path: Path) -> None:
    with wire_server(answer()) as server, pytest.raises(StorageFull):
        Outbound(LOOPBACK).download(
            f"{server.url}/", _FullDisk(tmp_path / "video"), max_bytes=1 << 20,
            deadline=time.monotonic() + 30, cancelled=threading.Event(),
        )  # fmt: skip


class _FullDisk(type(Path())):  # type: ignore[misc]
    def open(self, *_: object, **__: object) -> object:
        return open("/dev/full", "wb", buffering=0)  # noqa: PTH123


def test_redirects_are_followed_and_each_is_checked(tmp_path: Path) -> None:
    def redirect(connection: socket.socket, head: bytes) -> None:
        step = int(head.split()[1].rsplit(b"/", 1)[1])
        if step == 0:
            answer()(connection, head)
        else:
            answer(b"", "302 Found", Location=f"{step - 1}#part")(connection, head)

    with wire_server(redirect) as server:
        assert fetch(f"{server.url}/at/5", tmp_path / "video").num_bytes == len(BODY)
        assert [head.split()[1] for head in server.heads] == [f"/at/{step}".encode() for step in range(5, -1, -1)]
        with pytest.raises(FetchFailed, match="more than 5 redirects"):
            fetch(f"{server.url}/at/6", tmp_path / "video")


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://localhost:{port}/",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_x",
        "http://user@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "http://other.example:{port}/",
    ],
)
def test_a_redirect_to_what_is_not_allowed_is_refused(tmp_path: Path, location: str) -> None:
    asked = list[str]()

    def resolve(host: str, port: int) -> list[Address]:
        asked.append(host)
        return addresses("127.0.0.2")

    def redirect(connection: socket.socket, head: bytes) -> None:
        answer(b"", "307 Temporary Redirect", Location=location.format(port=server.port))(connection, head)

    policy = UrlPolicy.configured(["127.0.0.1", "localhost", "127.0.0.2", "::1", "10.0.0.1"], ["127.0.0.1/32"])
    with (
        wire_server(redirect) as server,
        pytest.raises(UrlRefused, match=r"A redirect was refused|leads to no address"),
    ):
        fetch(f"{server.url}/", tmp_path / "video", policy=policy, resolve=resolve)
    assert len(server.heads) == 1
    assert "other.example" not in asked


def test_a_name_that_leads_elsewhere_later_is_of_no_use(tmp_path: Path) -> None:
    answers = [addresses("127.0.0.1"), addresses("127.0.0.2")]
    asked = list[str]()

    def resolve(host: str, port: int) -> list[Address]:
        asked.append(host)
        return answers[len(asked) - 1]

    with wire_server(answer()) as server:
        url = f"http://rebinding.example:{server.port}/"
        assert fetch(url, tmp_path / "video", resolve=resolve).num_bytes == len(BODY)
        assert asked == ["rebinding.example"]  # once: the second answer is never used for the first request
        with pytest.raises(UrlRefused, match="leads to no address"):
            fetch(url, tmp_path / "video", resolve=resolve)
        assert len(server.heads) == 1
        assert b"host: rebinding.example:" in server.heads[0].lower()


@pytest.mark.parametrize("found", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_several_addresses_of_which_one_is_refused(tmp_path: Path, found: tuple[str, ...]) -> None:
    with wire_server(answer()) as server, pytest.raises(UrlRefused, match="leads to no address"):
        fetch(f"http://a.example:{server.port}/", tmp_path / "video", resolve=lambda *_: addresses(*found))
    assert not server.heads


def test_the_next_address_is_tried_where_the_first_does_not_answer(tmp_path: Path) -> None:
    policy = UrlPolicy.configured(["*"], ["127.0.0.0/8"])
    with wire_server(answer()) as server:
        both = addresses("127.0.0.9", "127.0.0.1")
        url = f"http://a.example:{server.port}/"
        assert fetch(url, tmp_path / "video", policy=policy, resolve=lambda *_: both).num_bytes == len(BODY)
        with pytest.raises(FetchFailed, match="cannot be reached"):
            fetch(url, tmp_path / "video", policy=policy, resolve=lambda *_: both[:1])


def test_the_name_of_this_machine_is_refused_by_the_real_resolver(tmp_path: Path) -> None:
    with wire_server(answer()) as server, pytest.raises(UrlRefused, match="leads to no address"):
        fetch(f"https://localhost:{server.port}/", tmp_path / "video", policy=UrlPolicy(hosts=("*",)))
    assert not server.heads


def test_a_look_up_that_hangs_or_fails_looks_like_a_refused_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidlex.service.outbound.resolving.RESOLVE_SECONDS", 0.3)
    ended = threading.Event()

    def hangs(host: str, port: int) -> list[Address]:
        ended.wait()
        return addresses("127.0.0.1")

    def fails(host: str, port: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    said = set()
    for resolve in (hangs, fails, lambda *_: addresses("10.0.0.1"), lambda *_: []):
        with pytest.raises(UrlRefused) as error:
            fetch("https://a.example/", tmp_path / "video", resolve=resolve)
        said.add(str(error.value))
    assert len(said) == 1
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FetchFailed, match="cancelled"):
        fetch("https://a.example/", tmp_path / "video", resolve=hangs, cancelled=cancelled)
    monkeypatch.setattr("vidlex.service.outbound.resolving._places", threading.BoundedSemaphore(1))
    monkeypatch.setattr("vidlex.service.outbound.resolving._PLACE_SECONDS", 0.1)
    with pytest.raises(UrlRefused):
        fetch("https://a.example/", tmp_path / "video", resolve=hangs)
    with pytest.raises(Overloaded):  # to be tried again: it says nothing of the name
        fetch("https://b.example/", tmp_path / "video", resolve=hangs)
    ended.set()


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire_server(answer(b"proxy")) as proxy, wire_server(answer()) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert fetch(f"{server.url}/", tmp_path / "video").num_bytes == len(BODY)
        assert not proxy.heads


def test_limits_end_at_their_deadline() -> None:
    with pytest.raises(FetchFailed, match="in time"):
        Limits(time.monotonic(), threading.Event()).seconds_left(10.0)
    assert 0 < Limits(time.monotonic() + 5.0, threading.Event()).seconds_left(10.0) <= 5.0
