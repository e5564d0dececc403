"""Requests to URLs of clients: the name is resolved once, its addresses are checked, and one of them is connected to.

Redirects of a download are checked like the first URL; those of a webhook are failures. Environment proxies are not
used: they would resolve the name again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidlex.service.outbound.policy import UrlPolicy


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
    retry_after_seconds: float | None


class Outbound:
    """Thread-safe. Every method raises UrlRefused and FetchFailed."""

    def __init__(self, policy: UrlPolicy) -> None:
        self.policy = policy

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
        """``deadline`` of time.monotonic. The file is removed after an error. ``on_bytes`` gets done and total."""
        raise NotImplementedError

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> Posted:
        raise NotImplementedError
