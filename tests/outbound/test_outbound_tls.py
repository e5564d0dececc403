"""https of downloads and deliveries, and POSTs of webhooks."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from support.private_ca import PrivateCa, tls_in_front_of
from support.wire_server import Answer, WireServer, wire_server
from vidlex.service.errors import FetchFailed, UrlRefused
from vidlex.service.outbound.addresses import Address
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import MAX_ANSWER_BYTES, Outbound, Posted

POLICY = UrlPolicy.configured(["*"], ["127.0.0.0/8"])


def at_home(host: str, port: int) -> list[Address]:
    return [ipaddress.ip_address("127.0.0.1")]


def sends(raw: bytes, hold: float = 0.0) -> Answer:
    def send(connection: socket.socket, _: bytes) -> None:
        connection.sendall(raw)
        if hold:
            time.sleep(hold)

    return send


OK = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def download(outbound: Outbound, url: str, path: Path) -> bytes:
    ends = time.monotonic() + 30
    outbound.download(url, path, max_bytes=1000, deadline=ends, cancelled=threading.Event())
    return path.read_bytes()


def test_certificates_are_checked_for_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, other = PrivateCa(tmp_path, "Ours"), PrivateCa(tmp_path, "Other")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    outbound = Outbound(POLICY, resolve=at_home)
    names = list[str | None]()

    def note(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        names.append(name)

    good = ca.issue("media.example", "127.0.0.1")
    good.sni_callback = note
    with wire_server(OK) as plain:
        with tls_in_front_of(plain.url, good) as port:
            assert download(outbound, f"https://media.example:{port}/", tmp_path / "x") == b"hello"
            assert download(outbound, f"https://127.0.0.1:{port}/", tmp_path / "x") == b"hello"
            assert names == ["media.example", None]
            assert f"host: media.example:{port}".encode() in plain.heads[0].lower()
            with pytest.raises(FetchFailed, match="certificate is not accepted"):
                download(outbound, f"https://other.example:{port}/", tmp_path / "x")
            with pytest.raises(UrlRefused):  # as a name, the same machine is refused where it is not configured
                strict = Outbound(UrlPolicy(hosts=("*",)), resolve=at_home)
                download(strict, f"https://media.example:{port}/", tmp_path / "x")
        for context in (other.issue("media.example"), ca.issue("media.example", is_expired=True)):
            with tls_in_front_of(plain.url, context) as port, pytest.raises(FetchFailed, match="certificate"):
                download(outbound, f"https://media.example:{port}/", tmp_path / "x")
        monkeypatch.setattr("vidlex.service.outbound.connecting.CONNECT_SECONDS", 0.5)
        with pytest.raises(FetchFailed, match="no encrypted connection"):
            download(outbound, f"https://media.example:{plain.port}/", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_redirect_from_https_to_a_public_http_is_refused(tmp_path: Path) -> None:
    ca = PrivateCa(tmp_path)
    trust = ssl.create_default_context(cafile=str(ca.file))
    outbound = Outbound(UrlPolicy.configured(["*"], ["127.0.0.1/32"]), resolve=at_home, trust=trust)
    redirect = sends(b"HTTP/1.1 301 Moved\r\nLocation: http://1.1.1.1/\r\nContent-Length: 0\r\n\r\n")
    with (
        wire_server(redirect) as plain,
        tls_in_front_of(plain.url, ca.issue("a.example")) as port,
        pytest.raises(UrlRefused, match=r"leads to|https"),
    ):
        download(outbound, f"https://a.example:{port}/", tmp_path / "x")


def post(server: WireServer, *, timeout_seconds: float = 30.0, cancelled: threading.Event | None = None) -> Posted:
    return Outbound(POLICY).post(
        f"{server.url}/hook?x",
        b'{"a":1}',
        {"webhook-id": "msg_1"},
        timeout_seconds=timeout_seconds,
        cancelled=cancelled,
    )


def test_a_post_is_answered_with_status_and_beginning() -> None:
    long = b"HTTP/1.1 500 Oops\r\nRetry-After: 120\r\n\r\n" + b"x" * 100_000
    with wire_server(sends(long)) as server:
        posted = post(server)
        head, _, body = server.heads[0].partition(b"\r\n\r\n")
    assert (posted.status, posted.body, posted.retry_after_seconds) == (500, b"x" * MAX_ANSWER_BYTES, 120.0)
    assert head.startswith(b"POST /hook?x HTTP/1.1\r\n")
    assert b"webhook-id: msg_1" in head.lower()
    assert body in (b"", b'{"a":1}')  # in one packet or in two


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("9" * 64, 1e64),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2020 00:00:00 -9999999999999999999", None),
        ("Mon, 01 Jan 2020 00:00:00 +99999999", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(given: str, seconds: float | None) -> None:
    with wire_server(sends(f"HTTP/1.1 503 X\r\nRetry-After: {given}\r\nContent-Length: 0\r\n\r\n".encode())) as server:
        assert post(server).retry_after_seconds == seconds


def test_retry_after_of_a_success_is_not_read() -> None:
    with wire_server(sends(b"HTTP/1.1 200 X\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n")) as server:
        assert post(server).retry_after_seconds is None


def test_a_redirect_of_a_post_is_not_followed() -> None:
    with wire_server(sends(b"HTTP/1.1 307 X\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")) as server:
        assert post(server).status == 307
        assert len(server.heads) == 1


def test_a_post_ends_in_time_and_when_it_is_cancelled() -> None:
    def silent(connection: socket.socket, _: bytes) -> None:
        server.ended.wait()

    with wire_server(silent) as server:
        with pytest.raises(FetchFailed, match="in time"):
            post(server, timeout_seconds=0.5)
        cancelled = threading.Event()
        threading.Timer(0.3, cancelled.set).start()
        with pytest.raises(FetchFailed, match="cancelled"):
            post(server, cancelled=cancelled)


def test_a_status_counts_although_the_body_does_not_end() -> None:
    with wire_server(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", hold=1.0)) as server:
        posted = post(server, timeout_seconds=0.6)
    assert (posted.status, posted.body) == (200, b"half")


def test_a_handshake_that_hangs_ends_in_time() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, pytest.raises(FetchFailed):
        Outbound(POLICY).post(f"https://127.0.0.1:{listener.getsockname()[1]}/", b"", {}, timeout_seconds=0.5)
