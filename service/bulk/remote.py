"""Object stores and web servers by fsspec. Credentials, endpoints and proxies are those of the usual environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from vidlex.service.bulk.source import VideoSource

# scheme -> the package that reads it
SCHEMES: Mapping[str, str] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60  # without a byte
MAX_LEVELS = 64  # of folders below a prefix
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "last_modified")


class MissingPackage(ModuleNotFoundError):
    """``name`` is the package, the message says how to install it."""


def scheme_of(uri: str) -> str | None:
    """In lower case; None for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else None


def is_remote(uri: str) -> bool:
    return scheme_of(uri) in SCHEMES


@lru_cache(maxsize=len(SCHEMES))
def filesystem(scheme: str) -> Any:
    """Raises MissingPackage."""
    package = SCHEMES[scheme]
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        hint = "pip install 'vidlex[bulk]'" if package in ("s3fs", "aiohttp") else f"pip install {package}"
        raise MissingPackage(f"{scheme}:// needs {package}: {hint}", name=package) from error


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "read_timeout": READ_TIMEOUT_SECONDS}
        # s3fs itself tries five times; botocore would do so in each of them
        return {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1, "mode": "standard"}}}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS
        )
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    return {}


def filesystem_and_path(uri: str) -> tuple[Any, str]:
    """Not by ``fsspec.url_to_fs``, which follows chains such as ``https://host::file:///etc/passwd``."""
    scheme = scheme_of(uri)
    assert scheme is not None
    store = filesystem(scheme)
    return store, store._strip_protocol(uri)


def version_of(info: Mapping[str, Any]) -> str | None:
    """ "SIZE:TAG" of a file's description; None if it has no tag that changes with the content."""
    for key in _TAGS:
        if value := info.get(key):
            return f"{info.get('size')}:{str(value).strip(chr(34))}"
    return None


def describe(uri: str) -> dict[str, Any] | None:
    """Name, size and type ("file" or "directory"); None if there is nothing. Raises what the store raises."""
    store, path = filesystem_and_path(uri)
    try:
        return dict(store.info(path))
    except FileNotFoundError:
        return None


def has_wildcards(uri: str) -> bool:
    """The ``?`` of a web address begins its query."""
    characters = "*" if scheme_of(uri) in ("http", "https") else "*?["
    return any(character in uri for character in characters)


def list_folder(uri: str, suffixes: frozenset[str]) -> Iterator[VideoSource]:
    """Files with ``suffixes`` below a prefix, in the order of their names, one level in memory at a time."""
    scheme = scheme_of(uri)
    store, path = filesystem_and_path(uri)
    if scheme in ("http", "https") and not path.endswith("/"):
        path += "/"
    yield from _list(store, scheme or "", path, suffixes, MAX_LEVELS)


def _list(store: Any, scheme: str, path: str, suffixes: frozenset[str], levels: int) -> Iterator[VideoSource]:
    parent = path.rstrip("/") + "/"
    for info in sorted(store.ls(path, detail=True), key=lambda info: str(info["name"])):
        name = str(info["name"])
        base = name.rstrip("/").rpartition("/")[2]
        if not name.startswith(parent) or name.rstrip("/") == path.rstrip("/") or base.startswith("."):
            continue
        if info["type"] == "directory":
            if levels:
                yield from _list(store, scheme, name, suffixes, levels - 1)
        elif _suffix(base) in suffixes:
            yield VideoSource(_uri(scheme, name), version=version_of(info))


def match_names(uri: str, suffixes: frozenset[str] | None) -> Iterator[VideoSource]:
    """Files that match a pattern, in the order of their names. ``suffixes`` None: all."""
    scheme = scheme_of(uri)
    store, path = filesystem_and_path(uri)
    for name, info in sorted(store.glob(path, detail=True).items()):
        if info["type"] == "file" and (suffixes is None or _suffix(name) in suffixes):
            yield VideoSource(_uri(scheme or "", name), version=version_of(info))


def _uri(scheme: str, name: str) -> str:
    return name if "://" in name else f"{scheme}://{name}"


def _suffix(name: str) -> str:
    """With the dot, in lower case, without the query of a web address."""
    base = name.partition("?")[0].rpartition("/")[2]
    return "." + base.rpartition(".")[2].lower() if "." in base else ""
