"""Labels over HTTP with the dummy model: importing many, and adding single labels while other clients classify.

The dummy model encodes in microseconds, so a request takes the time of the label database. The readers classify one
small video from the feature cache, so a request takes the time of the matching. This is its worst case: with the dummy
model a third of all labels have equal scores and are ordered by name.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Timing, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.bench.load import write_videos

MAX_ADD_MS = 50.0
_BATCH = 1000
_NUM_READERS = 2
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class LabelsOptions(BenchOptions):
    num_labels: int = 100_000
    """Labels to import."""
    num_added: int = 200
    """Single labels to add afterwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 1 or self.num_added < 1:
            raise ValueError("num_labels and num_added must be positive")


def run(options: LabelsOptions) -> Report:
    num_labels = min(options.num_labels, 500) if options.quick else options.num_labels
    num_added = min(options.num_added, 5) if options.quick else options.num_added
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as folder:
        (video,) = write_videos(Path(folder), count=1, seconds=2.0, width=96, height=64, fps=10)
        with (
            live_service(Path(folder) / "data", "dummy", feature_cache_bytes=_CACHE_BYTES) as service,
            service.client() as client,
        ):
            import_seconds = _import(client, num_labels)
            add_idle = _add(client, num_added, "idle")
            with _readers(service, video) as read_idle:
                time.sleep(max(sum(add_idle), 0.5))
            with _readers(service, video) as read_busy:
                add_busy = _add(client, num_added, "busy")
    cases = [
        Case(
            name=f"importing {num_labels} labels in requests of {_BATCH}",
            timings=(Timing(name="vidlex", seconds=(import_seconds,), work=num_labels, unit="labels"),),
        ),
        Case(
            name=f"adding one label to {num_labels}",
            timings=(
                Timing(name="no readers", seconds=tuple(add_idle), work=1, unit="labels"),
                Timing(name=f"{_NUM_READERS} readers", seconds=tuple(add_busy), work=1, unit="labels"),
            ),
            figures=(
                Figure(name="add p50, no readers", value=_ms(add_idle, 50), unit="ms", at_most=MAX_ADD_MS),
                Figure(name="add p99, no readers", value=_ms(add_idle, 99), unit="ms"),
                Figure(name=f"add p50, {_NUM_READERS} readers", value=_ms(add_busy, 50), unit="ms"),
                Figure(name="classify p50, no writer", value=_ms(read_idle, 50), unit="ms"),
                Figure(name="classify p99, no writer", value=_ms(read_idle, 99), unit="ms"),
                Figure(name="classify p50, one writer", value=_ms(read_busy, 50), unit="ms"),
                Figure(name="classify p99, one writer", value=_ms(read_busy, 99), unit="ms"),
            ),
        ),
    ]
    return report("labels", cases, options)


def _import(client: httpx.Client, num_labels: int) -> float:
    started = time.monotonic()
    for start in range(0, num_labels, _BATCH):
        names = [{"name": f"label number {n}"} for n in range(start, min(start + _BATCH, num_labels))]
        answer = client.post("/labels", json={"labels": names}).raise_for_status().json()
        if any(item["status"] != 201 for item in answer["data"]):
            raise BenchError("a label was not stored")
    return time.monotonic() - started


def _add(client: httpx.Client, num_added: int, name: str) -> list[float]:
    seconds = []
    for n in range(num_added):
        started = time.monotonic()
        client.post("/labels", json={"name": f"{name} {n}"}).raise_for_status()
        seconds.append(time.monotonic() - started)
    return seconds


@contextmanager
def _readers(service: LiveService, video: bytes) -> Iterator[list[float]]:
    """The list holds the seconds of each request once the block exits."""
    seconds: list[float] = []
    errors: list[Exception] = []
    stopped = threading.Event()

    def read() -> None:
        try:
            with service.client() as client:
                while not stopped.is_set():
                    started = time.monotonic()
                    client.post("/classify", files={"file": ("v.mp4", video)}).raise_for_status()
                    seconds.append(time.monotonic() - started)
        except httpx.HTTPError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(_NUM_READERS)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    if errors or not seconds:
        raise BenchError(f"a reader failed: {errors}")


def _ms(seconds: list[float], percentile: int) -> float:
    return 1000 * (statistics.median(seconds) if percentile == 50 else float(np.percentile(seconds, percentile)))
