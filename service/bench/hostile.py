"""Hostile clients all at once: the latency of a client with another key, against that of an idle service."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from vidlex.service.bench import attacks
from vidlex.service.bench.harness import BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.bench.load import LABELS, with_unique_bytes, write_videos

MAX_SLOWDOWN = 3.0
MAX_LIVEZ_SECONDS = 1.0
_IDLE_REQUESTS = 20
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class HostileOptions(BenchOptions):
    seconds: float = 30.0
    """Duration of the attacks."""


@dataclass
class _Seen:
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no answer

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, 100 * share)) if self.seconds else float("nan")


def run(options: HostileOptions) -> Report:
    spec = "dummy" if options.quick else options.model
    with tempfile.TemporaryDirectory(prefix="vidlex-hostile-") as name:
        folder = Path(name)
        (video,) = write_videos(folder / "videos", count=1, seconds=1.0 if options.quick else 4.0)
        reader, writer, obeying = attacks.key_file(folder / "keys", "read", "write", "write")
        with live_service(
            folder / "data", spec, device=options.device, api_keys_file=folder / "keys", rate_limit_per_second=0
        ) as service:
            body = {"labels": [{"name": label} for label in LABELS]}
            with service.client() as client:
                client.headers["Authorization"] = f"Bearer {obeying}"
                client.post("/labels", json=body).raise_for_status()
            idle = _Seen()
            for _ in range(3 if options.quick else _IDLE_REQUESTS):
                _classify(service, obeying, video, idle)
            attacked, living = _Seen(), _Seen()
            attack = attacks.Attack(service.url, reader, writer)
            if options.quick:
                attack = attacks.Attack(
                    service.url, reader, writer, num_silent=50, num_slow=4, num_keys=10_000,
                    slow_seconds=1.0, slow_width=1280, slow_height=720,
                )  # fmt: skip
            with ExitStack() as stack:
                stack.enter_context(attacks.attacking(attack))
                stack.enter_context(_watching(service, living))
                end = time.monotonic() + (2 if options.quick else options.seconds)
                while time.monotonic() < end:
                    _classify(service, obeying, video, attacked)
                    time.sleep(_PAUSE_SECONDS)
            is_ready = _is_ready_soon(service)
    figures = (
        Figure(name="idle: p50", value=1000 * idle.percentile(0.5), unit="ms"),
        Figure(name="idle: p95", value=1000 * idle.percentile(0.95), unit="ms"),
        Figure(name="under attack: p50", value=1000 * attacked.percentile(0.5), unit="ms"),
        Figure(name="under attack: p95", value=1000 * attacked.percentile(0.95), unit="ms"),
        Figure(
            name="p50 under attack over idle",
            value=attacked.percentile(0.5) / idle.percentile(0.5),
            at_most=MAX_SLOWDOWN,
        ),
        Figure(name="p95 under attack over idle", value=attacked.percentile(0.95) / idle.percentile(0.95)),
        Figure(name="answered", value=attacked.statuses[200], unit="requests"),
        Figure(name="refused or lost", value=attacked.statuses.total() - attacked.statuses[200], at_most=0),
        Figure(
            name="/livez, slowest", value=1000 * living.percentile(1.0), unit="ms", at_most=1000 * MAX_LIVEZ_SECONDS
        ),
        Figure(name="/livez, refused or lost", value=living.statuses.total() - living.statuses[200], at_most=0),
        Figure(name="ready afterwards", value=float(is_ready), at_least=1),
    )
    title = (
        f"{attack.num_silent} silent connections, {attacks.NUM_CLOSED} requests with 64 new labels whose sockets are "
        f"closed, {attack.num_slow} slow files, objects of {attack.num_keys} keys, {Path(spec).name}"
    )
    note = f"other answers: {dict(attacked.statuses)}" if attacked.statuses.total() > attacked.statuses[200] else ""
    return report("hostile", [Case(name=title, figures=figures, note=note)], options)


def _classify(service: LiveService, key: str, video: bytes, seen: _Seen) -> None:
    began = time.perf_counter()
    with service.client(timeout_seconds=60.0) as client:
        files = {"file": ("video.mp4", with_unique_bytes(video), "video/mp4")}
        try:
            status = client.post("/classify", files=files, headers={"Authorization": f"Bearer {key}"}).status_code
        except httpx.TransportError:
            status = 0
    seen.statuses[status] += 1
    if status == 200:
        seen.seconds.append(time.perf_counter() - began)


@contextmanager
def _watching(service: LiveService, seen: _Seen) -> Iterator[None]:
    """Asks /livez over a new connection each time, as a probe does."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_PAUSE_SECONDS / 2):
            began = time.perf_counter()
            with service.client(timeout_seconds=30.0) as client:
                try:
                    status = client.get("/livez").status_code
                except httpx.TransportError:
                    status = 0
            seen.statuses[status] += 1
            seen.seconds.append(time.perf_counter() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _is_ready_soon(service: LiveService) -> bool:
    for _ in range(50):
        try:
            if service.is_ready():
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    return False
