"""Where the service is, how it is reached and how long a client waits: arguments, else variables of the environment."""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vidlex.service.client.errors import ConfigurationInvalid
from vidlex.service.client.tls import Verify, trust_of

if TYPE_CHECKING:
    import ssl

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "VIDLEX_URL"
API_KEY_VARIABLE = "VIDLEX_API_KEY"
NAMESPACE_VARIABLE = "VIDLEX_NAMESPACE"
CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Which failures are waited out. What is not safe to repeat is repeated only if the service has not begun it."""

    max_seconds: float = 60.0
    """From the first refusal (429, model_loading, ...) until the last attempt. A later ``Retry-After`` is not waited
    for."""
    connect_seconds: float = 2.0
    """From the first refused connection until the last attempt."""
    max_broken_connections: int = 3
    """In a row, of a request that is safe to repeat."""


NO_WAIT = RetryPolicy(max_seconds=0.0, connect_seconds=0.0, max_broken_connections=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    url: str  # without a slash at the end
    headers: Mapping[str, str] = field(repr=False)  # with the key
    proxy: str | None = field(repr=False)  # perhaps with a password
    trust: ssl.SSLContext
    timeout_seconds: float
    connect_seconds: float
    retries: RetryPolicy

    @property
    def shown_proxy(self) -> str:
        """Without its password."""
        parts = urlsplit(self.proxy or "")
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def resolve(
    url: str | None,
    key: str | None,
    *,
    namespace: str | None,
    timeout_seconds: float,
    connect_seconds: float,
    retries: RetryPolicy,
    verify: Verify,
    proxy: str | None,
) -> Config:
    """Raises ConfigurationInvalid."""
    url = (url or os.environ.get(URL_VARIABLE, "").strip() or DEFAULT_URL).rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationInvalid(f"the URL is no address of a service: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationInvalid(f"the address must start with http:// or https://, not {url!r}")
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationInvalid("the address of the service has no query, fragment or user name")
    key = os.environ.get(API_KEY_VARIABLE, "").strip() if key is None else key.strip()
    namespace = os.environ.get(NAMESPACE_VARIABLE, "").strip() if namespace is None else namespace.strip()
    headers = {"Accept": "application/json", "User-Agent": "vidlex-client"}
    if key:
        headers["Authorization"] = f"Bearer {_header(key, 'the API key')}"
    if namespace:
        headers["X-Vidlex-Namespace"] = _header(namespace, "the namespace")
    proxy = proxy or _proxy_of(parts.scheme, host, port)
    return Config(
        url=url,
        headers=headers,
        proxy=proxy,
        trust=trust_of(verify, is_used=parts.scheme == "https" or (proxy or "").startswith("https:")),
        timeout_seconds=timeout_seconds,
        connect_seconds=connect_seconds,
        retries=retries,
    )


def _header(text: str, what: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ConfigurationInvalid(f"{what} contains characters that are not printable ASCII")
    return text


def _proxy_of(scheme: str, host: str, port: int | None) -> str | None:
    """Of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, unless NO_PROXY names the host or it is this machine."""
    if is_loopback(host):
        return None
    found = urllib.request.getproxies_environment()
    proxy = found.get(scheme) or found.get("all")
    if not proxy or _is_excepted(host, port, found):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")


def _is_excepted(host: str, port: int | None, found: dict[str, str]) -> bool:
    if urllib.request.proxy_bypass(host if port is None else f"{host}:{port}", found):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in (text.strip().strip("[]") for text in found.get("no", "").split(",")):
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False
