"""Load on the proxy from threads, which counts every answer that is not a success."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_PAUSE_SECONDS = 0.05
_KINDS = ("classify", "labels", "labels", "write")


@dataclass
class Load:
    url: str
    key: str
    video: Path
    label: str  # id of a label to write to
    enter_network: Callable[[], None]
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(kind,), daemon=True) for kind in _KINDS]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(200)

    def _ask(self, kind: str) -> None:
        self.enter_network()
        content = self.video.read_bytes()
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=180, trust_env=False) as http:
            while not self._stop.wait(_PAUSE_SECONDS):
                began = time.monotonic()
                try:
                    if kind == "classify":
                        answer = http.post("/classify", files={"file": content})
                    elif kind == "labels":
                        answer = http.get("/labels")
                    else:
                        answer = http.patch(f"/labels/{self.label}", json={"metadata": {"at": str(began)}})
                    failure = "" if answer.is_success else f"{answer.status_code} {answer.text[:200]}"
                except httpx.HTTPError as error:
                    failure = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.answers[kind] += 1
                    self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                    if failure:
                        self.failures.append(f"{time.strftime('%T')} {kind}: {failure}")
