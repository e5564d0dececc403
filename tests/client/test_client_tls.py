"""HTTPS with a private authority, and what is said of certificates that are not accepted. Proxies."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.client_kinds import KINDS, opened
from support.forward_proxy import ForwardProxy, forward_proxy
from support.live import live_service
from support.private_ca import PrivateCa, tls_in_front_of
from support.serving import colour_video
from vidlex.service.cli import app
from vidlex.service.client import errors
from vidlex.service.client.config import RetryPolicy, resolve

HOST = "tags.example"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    hosts = f'["localhost", "127.0.0.1", "{HOST}"]'
    limits = {"VIDLEX_ALLOWED_HOSTS": hosts, "VIDLEX_MAX_UPLOAD_BYTES": "20000000"}
    with live_service(tmp_path_factory.mktemp("tls") / "data", **limits) as address:
        yield address


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCa:
    return PrivateCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def port(url: str, ca: PrivateCa) -> Iterator[int]:
    with tls_in_front_of(url, ca.issue("localhost", "127.0.0.1", HOST)) as found:
        yield found


@pytest.fixture
def service(port: int, ca: PrivateCa) -> tuple[int, PrivateCa]:
    return port, ca


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["VIDLEX_CA_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "file", "folder", "context"])
def test_a_private_authority_is_trusted(
    service: tuple[int, PrivateCa], kind: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, ca = service
    folder = tmp_path / "certificates"
    folder.mkdir()
    # OpenSSL finds a certificate in a folder by the hash of its subject.
    (folder / f"{subject_hash(ca)}.0").write_bytes(ca.file.read_bytes())
    verify = {"file": str(ca.file), "folder": folder, "context": ssl.create_default_context(cafile=ca.file)}
    if way in verify:
        monkeypatch.setenv("VIDLEX_CA_FILE", os.devnull)
    else:
        monkeypatch.setenv(way, str(folder if way == "SSL_CERT_DIR" else ca.file))
    with opened(kind, f"https://localhost:{port}", **({"verify": verify[way]} if way in verify else {})) as client:
        assert client.ready().status == "ready"
        video = colour_video(tmp_path / "red.mp4", "red")
        assert client.classify(video, candidate_labels=["red"]).labels[0].matched


def subject_hash(ca: PrivateCa) -> str:
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", ca.file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_a_certificate_comes_with_its_remedy(url: str, ca: PrivateCa, kind: str, port: int) -> None:
    def fault(address: str, **options: object) -> str:
        with opened(kind, address, **options) as client, pytest.raises(errors.TlsFailed) as caught:
            client.ready()
        assert caught.value.code == "tls_failed" and address in caught.value.detail
        return caught.value.detail

    unknown = fault(f"https://localhost:{port}")
    assert "unable to get local issuer certificate" in unknown and "VIDLEX_CA_FILE" in unknown
    with tls_in_front_of(url, ca.issue("localhost", is_expired=True)) as expired:
        assert "has expired" in fault(f"https://localhost:{expired}", verify=ca.file)
    with tls_in_front_of(url, ca.issue("other.example")) as other:
        text = fault(f"https://localhost:{other}", verify=ca.file)
        assert "mismatch" in text and "address that it names" in text
    plain = url.replace("http://", "https://")
    assert "http://" in fault(plain).replace(plain, "")
    with opened(kind, f"https://localhost:{port}", verify=False) as client:
        assert client.ready().status == "ready"


@pytest.mark.parametrize("kind", KINDS)
def test_an_encrypted_upload_is_refused_before_its_end(port: int, ca: PrivateCa, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with opened(kind, f"https://localhost:{port}", verify=ca.file) as client:
        for _ in range(3):
            with pytest.raises(errors.TooLarge):
                client.classify(path)


def test_a_file_without_certificates_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for value, words in ((str(empty), "no certificates"), (str(tmp_path / "missing.pem"), "No such file")):
        for name in ("VIDLEX_CA_FILE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, value)
            with pytest.raises(errors.ConfigurationInvalid, match=words) as caught, opened("sync", "https://a"):
                pass
            assert caught.value.detail.startswith(f"{name}: {value}")
            with opened("sync", "http://127.0.0.1:1"):
                pass  # plain HTTP needs none
            monkeypatch.delenv(name)


def test_the_command_line_tells_a_tls_fault(port: int, ca: PrivateCa) -> None:
    address = f"https://localhost:{port}"
    runner = CliRunner(env={"VIDLEX_URL": address})
    refused = runner.invoke(app, ["labels", "list"])
    assert refused.exit_code == 3 and "no service" not in refused.stderr
    assert f"the certificate of {address} is not accepted: " in refused.stderr and "VIDLEX_CA_FILE" in refused.stderr
    assert runner.invoke(app, ["labels", "list"], env={"VIDLEX_CA_FILE": str(ca.file)}).stdout == "no labels\n"


# --- proxies


@pytest.fixture
def proxy(url: str) -> Iterator[ForwardProxy]:
    with forward_proxy(int(url.rpartition(":")[2])) as found:
        yield found


@pytest.fixture
def tls_proxy(port: int) -> Iterator[ForwardProxy]:
    with forward_proxy(port) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "argument"])
def test_plain_requests_go_through_the_proxy(
    proxy: ForwardProxy, kind: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = proxy.url.replace("http://", "http://user:p%40ss@")
    if variable != "argument":
        monkeypatch.setenv(variable, address)
    with opened(kind, f"http://{HOST}", **({"proxy": address} if variable == "argument" else {})) as client:
        assert client.ready().status == "ready"
        assert list(client.labels()) == []
    assert [head.split("\r\n")[0] for head in proxy.heads] == [
        f"GET http://{HOST}/readyz HTTP/1.1",
        f"GET http://{HOST}/labels?limit=1000 HTTP/1.1",
    ]
    credentials = base64.b64encode(b"user:p@ss").decode()
    assert f"proxy-authorization: basic {credentials}".lower() in proxy.heads[0].lower()


@pytest.mark.parametrize("kind", KINDS)
def test_encrypted_requests_go_through_a_tunnel(
    tls_proxy: ForwardProxy, ca: PrivateCa, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", tls_proxy.url.removeprefix("http://"))
    monkeypatch.setenv("VIDLEX_CA_FILE", str(ca.file))
    video = colour_video(tmp_path / "red.mp4", "red")
    with opened(kind, f"https://{HOST}", "a-key") as client:
        assert client.classify(video, candidate_labels=["red"]).labels[0].matched
    assert tls_proxy.heads[0].startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert "a-key" not in "".join(tls_proxy.heads), "the proxy sees no key"
    monkeypatch.delenv("VIDLEX_CA_FILE")
    with opened(kind, f"https://{HOST}") as client, pytest.raises(errors.TlsFailed, match="VIDLEX_CA_FILE"):
        client.ready()


@pytest.mark.parametrize(
    ("address", "exceptions", "is_excepted"),
    [
        ("http://tags.example", "tags.example", True),
        ("http://tags.example", ".example", True),
        ("http://tags.example", "other.example, .EXAMPLE", True),
        ("http://tags.example", "*", True),
        ("http://tags.example:80", "tags.example:80", True),
        ("http://tags.example", "other.example", False),
        ("http://tags.example", "ags.example", False),
        ("http://10.1.2.3", "10.0.0.0/8,fd00::/8", True),
        ("http://[fd00::1]:9", "10.0.0.0/8,fd00::/8", True),
        ("http://11.1.2.3", "10.0.0.0/8,fd00::/8,nonsense/7", False),
        ("https://tags.example", "", False),
    ],
)
def test_no_proxy_is_obeyed(address: str, exceptions: str, is_excepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    config = resolve(
        address,
        None,
        namespace=None,
        timeout_seconds=1.0,
        connect_seconds=1.0,
        retries=RetryPolicy(),
        verify=True,
        proxy=None,
    )
    assert config.proxy == (None if is_excepted else "http://proxy.example:3128")


@pytest.mark.parametrize("kind", KINDS)
def test_this_machine_is_reached_without_a_proxy_unless_asked(
    url: str, kind: str, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for address in (url, url.replace("127.0.0.1", "localhost")):
        with opened(kind, address) as client:
            assert client.ready().status == "ready"
    assert proxy.heads == []
    with opened(kind, url, proxy=proxy.url) as client:
        assert client.ready().status == "ready"
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_may_be_encrypted_too(proxy: ForwardProxy, ca: PrivateCa, kind: str) -> None:
    with tls_in_front_of(proxy.url, ca.issue("localhost")) as port:
        with opened(kind, f"http://{HOST}", proxy=f"https://localhost:{port}", verify=ca.file) as client:
            assert client.ready().status == "ready"
        assert len(proxy.heads) == 1
        words = f"of the proxy https://localhost:{port} is not accepted"
        with (
            opened(kind, f"http://{HOST}", proxy=f"https://localhost:{port}") as client,
            pytest.raises(errors.TlsFailed, match=words),
        ):
            client.ready()


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_that_refuses_or_is_gone_is_named(kind: str, unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with forward_proxy(1, answer=refusal) as proxy:
        address = proxy.url.replace("http://", "http://user:secret@")
        monkeypatch.setenv("HTTPS_PROXY", address)
        options = {"retries": RetryPolicy(connect_seconds=0.0)}
        with opened(kind, f"https://{HOST}", **options) as client, pytest.raises(errors.ConnectionFailed) as caught:
            client.ready()
        assert proxy.url in caught.value.detail and "407" in caught.value.detail
        assert "secret" not in caught.value.detail
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port}")
    with opened(kind, f"https://{HOST}", **options) as client, pytest.raises(errors.ConnectionFailed) as gone:
        client.ready()
    assert f"the proxy http://127.0.0.1:{unused_port}" in gone.value.detail


def test_a_socks_proxy_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with opened("sync", "http://127.0.0.1:8000"):
        pass  # not used
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(errors.ConfigurationInvalid, match=r"httpx\[socks\]"), opened("sync", f"http://{HOST}"):
        pass
