"""How httpx is set up for a client, how its answers are read, and what its exceptions are for a client."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from vidlex.service.client.async_transport import WatchingTransport
from vidlex.service.client.config import Config
from vidlex.service.client.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    TimedOut,
    TlsFailed,
    UnexpectedAnswer,
    VidlexClientError,
)
from vidlex.service.client.exchange import MAX_ANSWER_BYTES, Call, Reply
from vidlex.service.client.tls import describe_fault

_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=5.0)


def http_client(config: Config) -> httpx.Client:
    return httpx.Client(**_options(config), verify=config.trust, proxy=_proxy(config), limits=_LIMITS)


def async_http_client(config: Config) -> httpx.AsyncClient:
    transport = WatchingTransport(config.trust, _proxy(config), _LIMITS)
    return httpx.AsyncClient(**_options(config), transport=transport)


def _options(config: Config) -> dict[str, Any]:
    """``trust_env`` is off: the environment is read in `config`."""
    return {
        "base_url": config.url,
        "headers": config.headers,
        "timeout": httpx.Timeout(config.timeout_seconds, connect=config.connect_seconds),
        "trust_env": False,
    }


def _proxy(config: Config) -> httpx.Proxy | None:
    if config.proxy is None:
        return None
    try:
        proxy = httpx.Proxy(config.proxy, ssl_context=config.trust if config.proxy.startswith("https:") else None)
        if proxy.url.scheme.startswith("socks"):
            import socksio  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise ConfigurationInvalid(f"the proxy {config.shown_proxy} needs: pip install 'httpx[socks]'") from None
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigurationInvalid(f"the proxy's address cannot be used: {error}") from None
    return proxy


def request_options(call: Call[Any]) -> dict[str, Any]:
    """Of httpx's `stream`, without an upload."""
    content = call.content()
    headers = dict(call.headers)
    if content is not None:
        headers["Content-Type"] = "application/json"
    return {"params": dict(call.params) or None, "headers": headers, "content": content}


def stream_options(call: Call[Any], config: Config, silence_seconds: float | None) -> dict[str, Any]:
    """``silence_seconds`` instead of the client's timeout."""
    options = request_options(call)
    if silence_seconds is not None:
        options["timeout"] = httpx.Timeout(silence_seconds, connect=config.connect_seconds)
    return options


class ReplyBody:
    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._num_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Raises UnexpectedAnswer."""
        self._num_bytes += len(chunk)
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise UnexpectedAnswer("the answer is too large")
        self._chunks.append(chunk)

    def reply(self, response: httpx.Response) -> Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, b"".join(self._chunks))


def fault_of(error: httpx.HTTPError, config: Config) -> VidlexClientError:
    url = config.url
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"the service at {url} did not answer in time")
    if isinstance(error, httpx.DecodingError):
        return UnexpectedAnswer(f"the answer of {url} is damaged: {error}")
    if isinstance(error, httpx.ProxyError):
        return ConnectionFailed(f"the proxy {config.shown_proxy} does not connect to {url}: {error}")
    if isinstance(error, httpx.ConnectError):
        return _not_connected(error, config)
    broken = ConnectionFailed(f"the connection to {url} failed: {error or type(error).__name__}")
    broken.was_connected = True
    return broken


def _not_connected(error: httpx.ConnectError, config: Config) -> VidlexClientError:
    tls = _tls_error(error)
    if tls is not None:
        return TlsFailed(describe_fault(tls, _encrypted_at(config)))
    if config.proxy is not None:
        return ConnectionFailed(f"no connection to {config.url} through the proxy {config.shown_proxy}: {error}")
    return ConnectionFailed(f"no service at {config.url}: {error or 'no connection'}")


def _encrypted_at(config: Config) -> str:
    if not (config.proxy or "").startswith("https:"):
        return config.url
    proxy = f"the proxy {config.shown_proxy}"
    return f"{config.url} or of {proxy}" if config.url.startswith("https:") else proxy


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError):
            return error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None
