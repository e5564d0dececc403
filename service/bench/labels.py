"""Labels over HTTP: importing many, and adding one beside many while others read, with an encoder that costs nothing.

The dummy model's encoding takes microseconds, so the time of a request is what the label database costs beyond it.
The readers classify one small video again and again out of the feature cache: what they do is the matching, at its
worst, because a third of all labels have the same score with this encoder and must be told apart by their names.
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
from vidlex.service.bench.hostile_files import write
from vidlex.service.bench.live import LiveService, live_service

MAX_ADD_MS = 50.0
_BATCH = 1000
_NUM_READERS = 2
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class LabelsOptions(BenchOptions):
    num_labels: int = 100_000
    num_added: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 1 or self.num_added < 1:
            raise ValueError("num_labels and num_added must be positive")


def run(options: LabelsOptions) -> Report:
    num_labels = min(options.num_labels, 500) if options.quick else options.num_labels
    num_added = min(options.num_added, 5) if options.quick else options.num_added
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as folder:
        video = write(Path(folder) / "video.mp4")
        with (
            live_service(Path(folder) / "data", "dummy", feature_cache_bytes=_CACHE_BYTES) as service,
            service.client() as client,
        ):
            imported = _import(client, num_labels)
            alone = _add(client, num_added, "alone")
            with _readers(service, video) as undisturbed:
                time.sleep(max(sum(alone), 0.5))
            with _readers(service, video) as disturbed:
                beside = _add(client, num_added, "beside")
    cases = [
        Case(
            name=f"importing {num_labels} labels in requests of {_BATCH}",
            timings=(Timing(name="vidlex", seconds=(imported,), work=num_labels, unit="labels"),),
        ),
        Case(
            name=f"adding one label beside {num_labels}",
            timings=(
                Timing(name="nobody reads", seconds=tuple(alone), work=1, unit="labels"),
                Timing(name=f"{_NUM_READERS} readers", seconds=tuple(beside), work=1, unit="labels"),
            ),
            figures=(
                Figure(name="median, nobody reads", value=_ms(alone, 50), unit="ms", at_most=MAX_ADD_MS),
                Figure(name="p99, nobody reads", value=_ms(alone, 99), unit="ms"),
                Figure(name=f"median, {_NUM_READERS} readers", value=_ms(beside, 50), unit="ms"),
                Figure(name="readers' median, nobody writes", value=_ms(undisturbed, 50), unit="ms"),
                Figure(name="readers' p99, nobody writes", value=_ms(undisturbed, 99), unit="ms"),
                Figure(name="readers' median beside the writer", value=_ms(disturbed, 50), unit="ms"),
                Figure(name="readers' p99 beside the writer", value=_ms(disturbed, 99), unit="ms"),
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
    """Threads that classify until the block ends; afterwards the list holds the seconds of each request."""
    seconds: list[float] = []
    errors: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        try:
            with service.client() as client:
                while not done.is_set():
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
        done.set()
        for thread in threads:
            thread.join()
    if errors or not seconds:
        raise BenchError(f"a reader failed: {errors}")


def _ms(seconds: list[float], percentile: int) -> float:
    return 1000 * (statistics.median(seconds) if percentile == 50 else float(np.percentile(seconds, percentile)))
