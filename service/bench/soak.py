"""Thousands of classifications: growth of memory, open files, processes and uploads left on disk; latency."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.bench.load import LABELS, add_labels, classify_all, write_videos

MAX_GROWTH = 0.02  # of memory, as a share, after the warm-up
VIDEOS = ((640, 360, 4.0), (320, 240, 8.0), (1280, 720, 2.0), (96, 64, 1.0), (360, 640, 4.0))  # width, height, seconds


@dataclass(frozen=True)
class SoakOptions(BenchOptions):
    num_requests: int = 10_000
    """Videos to classify."""
    num_clients: int = 8
    """Concurrent clients."""
    # Pools and caches fill, and decode processes are replaced for the first time.
    warmup_share: float = 0.2
    """Share of the requests during which memory may grow."""


class _MemorySampler:
    def __init__(self, service: LiveService, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self.num_done = 0
        # (requests done, bytes of the service, bytes of its decode workers)
        self.samples: list[tuple[int, int, int]] = []
        self._service = service
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            own, workers = self._service.resident_bytes()
            self.samples.append((self.num_done, own, workers))

    def count(self, number: int) -> None:
        self.num_done = max(self.num_done, number)

    def __enter__(self) -> _MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def run(options: SoakOptions) -> Report:
    num_requests = 60 if options.quick else options.num_requests
    spec = "dummy" if options.quick else options.model
    with tempfile.TemporaryDirectory(prefix="vidlex-soak-") as name:
        folder = Path(name)
        videos = []
        for number, (width, height, seconds) in enumerate(VIDEOS):
            length = 0.4 if options.quick else seconds
            videos += write_videos(folder / str(number), count=2, seconds=length, width=width, height=height)
        with live_service(folder / "data", spec, device=options.device, max_waiting_videos=64) as service:
            add_labels(service.url, LABELS)
            classify_all(service.url, videos, num_requests=options.num_clients, num_clients=options.num_clients)
            files, processes = service.num_files(), service.num_processes()
            with _MemorySampler(service, 0.02 if options.quick else 1.0) as memory:
                answers = classify_all(
                    service.url,
                    videos,
                    num_requests=num_requests,
                    num_clients=options.num_clients,
                    on_answer=memory.count,
                )
                time.sleep(0.5)
            time.sleep(1.0 if options.quick else 20.0)  # idle connections are closed after 15 s
            figures = [
                Figure(name="answered with 200", value=len(answers.latencies), at_least=num_requests),
                *_growth("service", memory, num_requests, options, column=1),
                *_growth("decode workers, total", memory, num_requests, options, column=2),
                Figure(name="uploads left on disk", value=len(service.uploads()), at_most=0),
                Figure(name="additional processes", value=service.num_processes() - processes, at_most=0),
                Figure(name="additional open files", value=service.num_files() - files, at_most=4),
                Figure(name="p50", value=1000 * answers.percentile(0.5), unit="ms"),
                Figure(name="p99", value=1000 * answers.percentile(0.99), unit="ms"),
                Figure(name="slowest", value=1000 * answers.percentile(1.0), unit="ms"),
                Figure(name="rate", value=answers.rate, unit="videos/s"),
            ]
    name = f"{num_requests} videos, {options.num_clients} clients, {Path(spec).name}"
    return report("soak", [Case(name=name, figures=tuple(figures), note="; ".join(answers.failures[:3]))], options)


def _growth(name: str, memory: _MemorySampler, num_requests: int, options: SoakOptions, *, column: int) -> list[Figure]:
    """Growth of the medians from the first to the last quarter after the warm-up, and the slope of a regression line.

    Quarters contain several replacements of decode processes, which are small at first.
    """
    samples = np.array(memory.samples, np.float64).reshape(-1, 3)
    settled = samples[samples[:, 0] >= options.warmup_share * num_requests]
    if len(settled) < 4:
        raise BenchError("too few memory samples; increase --num-requests")
    quarter = len(settled) // 4
    first, last = np.median(settled[:quarter, column]), np.median(settled[-quarter:, column])
    slope = np.polyfit(settled[:, 0], settled[:, column], 1)[0] if np.ptp(settled[:, 0]) else 0.0
    return [
        Figure(name=f"{name}: memory", value=float(last) / 2**20, unit="MiB"),
        Figure(name=f"{name}: growth", value=float(last / first - 1), at_most=MAX_GROWTH),
        Figure(name=f"{name}: slope", value=float(slope) * 1000 / 2**10, unit="KiB per 1,000 videos"),
    ]
