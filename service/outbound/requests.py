"""Requests to URLs of clients: the name is resolved once, its addresses are checked, and one of them is connected to.

Redirects of a download are checked like the first URL; those of a webhook are failures. Environment proxies are not
used: they would resolve the name again.
"""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpcore

from vidlex.service.errors import FULL_DISK_ERRORS, FetchFailed, StorageFull, UrlRefused
from vidlex.service.outbound.connecting import JudgedBackend
from vidlex.service.outbound.limits import Limits
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.resolving import Resolve, resolve_within, system_resolve
from vidlex.service.outbound.urls import ParsedUrl, follow

MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 1024
"""Of a POST, as far as it is kept."""
_REDIRECTS = (301, 302, 303, 307, 308)
_AGENT = b"vidlex"
_Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Downloaded:
    path: Path
    sha256: str
    num_bytes: int
    content_type: str | None


@dataclass(frozen=True)
class Posted:
    status: int
    body: bytes  # its beginning, at most 1 KiB
    retry_after_seconds: float | None  # None if it has succeeded


class Outbound:
    """Thread-safe. Every method raises UrlRefused and FetchFailed, and Overloaded while too many look-ups hang.

    ``trust``: default: the authorities of SSL_CERT_FILE and SSL_CERT_DIR, else those of the system and of certifi.
    """

    def __init__(
        self, policy: UrlPolicy, *, resolve: Resolve = system_resolve, trust: ssl.SSLContext | None = None
    ) -> None:
        self.policy = policy
        self._resolve = resolve
        self._trust = trust
        self._lock = threading.Lock()

    def download(
        self,
        url: str,
        path: Path,
        *,
        max_bytes: int,
        deadline: float,
        cancelled: threading.Event,
        on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> Downloaded:
        """``deadline`` of time.monotonic. The file is removed after an error. ``on_bytes`` gets done and total.

        Raises StorageFull.
        """
        try:
            return self._download(url, path, max_bytes, Limits(deadline, cancelled), on_bytes)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
                raise StorageFull(internal=str(error)) from error
            raise

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_seconds: float,
        cancelled: threading.Event | None = None,
    ) -> Posted:
        limits = Limits(time.monotonic() + timeout_seconds, cancelled or threading.Event())
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        with self._open("POST", self.policy.check(url), sent, body, limits) as response:
            start = b""
            # The status says what there is to know: a body that fails does not matter.
            with suppress(FetchFailed, httpcore.NetworkError, httpcore.ProtocolError):
                for chunk in response.iter_stream():
                    start = (start + chunk)[:MAX_ANSWER_BYTES]
                    if len(start) == MAX_ANSWER_BYTES:
                        break
            has_failed = not 200 <= response.status < 300
            return Posted(response.status, start, _seconds(_header(response, b"retry-after")) if has_failed else None)

    def _download(
        self, url: str, path: Path, max_bytes: int, limits: Limits, on_bytes: Callable[[int, int | None], None]
    ) -> Downloaded:
        at = self.policy.check(url)
        for _ in range(MAX_REDIRECTS + 1):
            with self._open("GET", at, [(b"accept", b"*/*")], None, limits) as response:
                location = _header(response, b"location")
                if response.status in _REDIRECTS and location is not None:
                    at = self._redirected(at, location)
                    continue
                if response.status != 200:
                    raise FetchFailed(f"The server answered with status {response.status}")
                return _save(response, path, max_bytes, on_bytes)
        raise FetchFailed(f"The URL leads to more than {MAX_REDIRECTS} redirects")

    def _redirected(self, at: ParsedUrl, location: bytes) -> ParsedUrl:
        try:
            return self.policy.check_parsed(follow(at, location))
        except UrlRefused as error:
            raise UrlRefused(f"A redirect was refused: {error}", internal=error.internal) from None

    @contextmanager
    def _open(
        self, method: str, url: ParsedUrl, headers: _Headers, body: bytes | None, limits: Limits
    ) -> Iterator[httpcore.Response]:
        literal = url.address
        addresses = [literal] if literal else resolve_within(self._resolve, url.host, url.port, limits)
        self.policy.check_addresses(url, addresses)
        origin = httpcore.Origin(url.scheme.encode(), url.host.encode(), url.port)
        target = httpcore.URL(scheme=origin.scheme, host=origin.host, port=url.port, target=url.target.encode())
        sent = [
            (b"host", url.authority.encode()),
            (b"user-agent", _AGENT),
            (b"accept-encoding", b"identity"),
            (b"connection", b"close"),
            *headers,
        ]
        connection = httpcore.HTTPConnection(
            origin, ssl_context=self._tls(), network_backend=JudgedBackend(addresses, limits)
        )
        try:
            limits.begin_head()
            with connection.stream(method, target, headers=sent, content=body) as response:
                limits.end_head()
                yield response
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise FetchFailed("The server broke the connection or does not speak HTTP", internal=repr(error)) from error
        finally:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        with self._lock:  # reading the authorities takes tens of milliseconds
            if self._trust is None:
                self._trust = _trust_of_environment()
            return self._trust


def _save(
    response: httpcore.Response, path: Path, max_bytes: int, on_bytes: Callable[[int, int | None], None]
) -> Downloaded:
    encoding = _header(response, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise FetchFailed("The server sends the file in a Content-Encoding, which is not decoded")
    announced = _header(response, b"content-length")
    total = int(announced) if announced is not None and len(announced) < 20 and announced.isdigit() else None
    too_large = FetchFailed(f"The file has more than {max_bytes} bytes")
    if total is not None and total > max_bytes:
        raise too_large
    digest, done = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in response.iter_stream():
            done += len(chunk)
            if done > max_bytes:
                raise too_large
            file.write(chunk)
            digest.update(chunk)
            on_bytes(done, total)
    kind = _header(response, b"content-type")
    content_type = None if kind is None else kind[:200].decode("ascii", "replace")
    return Downloaded(path, digest.hexdigest(), done, content_type)


def _header(response: httpcore.Response, name: bytes) -> bytes | None:
    return next((value for key, value in response.headers if key.lower() == name), None)


def _seconds(retry_after: bytes | None) -> float | None:
    """RFC 9110, 10.2.3: a number of seconds, or a date. None if it is neither."""
    if retry_after is None or len(retry_after) > 64:
        return None
    text = retry_after.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError, TypeError):  # TypeError: what other versions of Python raise for no date
        return None
    until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())


def _trust_of_environment() -> ssl.SSLContext:
    context = ssl.create_default_context()  # reads SSL_CERT_FILE and SSL_CERT_DIR
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    return context
