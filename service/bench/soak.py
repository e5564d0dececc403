"""Thousands of classifications in a row: does memory stay flat, is anything left behind, how slow do they get?"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.bench.load import LABELS, add_labels, classify_all, write_clips

FLAT = 0.02
"""How much memory may grow from the end of the warm-up on."""
SIZES = ((640, 360, 4.0), (320, 240, 8.0), (1280, 720, 2.0), (96, 64, 1.0), (360, 640, 4.0))


@dataclass(frozen=True)
class SoakOptions(BenchOptions):
    num_requests: int = 10_000
    num_clients: int = 8
    warmup_share: float = 0.2
    """Until so much is done, memory may still grow: pools and caches fill, decode processes are replaced once."""


class _Memory:
    """Samples a service's resident memory while it works."""

    def __init__(self, service: LiveService, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self.done = 0
        self.samples: list[tuple[int, int, int, int]] = []
        """(requests done, bytes of the service, bytes of its workers, open files)."""
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(self._every_seconds):
            own, workers = self._service.resident_bytes()
            self.samples.append((self.done, own, workers, self._service.num_files()))

    def count(self, number: int) -> None:
        self.done = max(self.done, number)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def run(options: SoakOptions) -> Report:
    """Videos of several sizes, 8 clients, the service's memory sampled every second."""
    num_requests = 60 if options.quick else options.num_requests
    spec = "dummy" if options.quick else options.model
    with tempfile.TemporaryDirectory(prefix="vidlex-soak-") as name:
        folder = Path(name)
        clips = []
        for number, (width, height, seconds) in enumerate(SIZES):
            length = 0.4 if options.quick else seconds
            clips += write_clips(folder / str(number), count=2, seconds=length, width=width, height=height)
        with live_service(folder / "data", spec, device=options.device, max_waiting_videos=64) as service:
            add_labels(service.url, LABELS)
            classify_all(service.url, clips, num_requests=options.num_clients, num_clients=options.num_clients)
            files, processes = service.num_files(), service.num_processes()
            with _Memory(service, 0.02 if options.quick else 1.0) as memory:
                answers = classify_all(
                    service.url,
                    clips,
                    num_requests=num_requests,
                    num_clients=options.num_clients,
                    on_answer=memory.count,
                )
                time.sleep(0.5)
            time.sleep(1.0 if options.quick else 20.0)  # connections that are kept alive end after 15 s
            figures = [
                Figure(name="answered with 200", value=len(answers.latencies), at_least=num_requests),
                *_growth("service", memory, num_requests, options, column=1),
                *_growth("decode workers together", memory, num_requests, options, column=2),
                Figure(name="uploads left on disk", value=len(service.uploads()), at_most=0),
                Figure(name="processes more than before", value=service.num_processes() - processes, at_most=0),
                Figure(name="open files more than before", value=service.num_files() - files, at_most=4),
                Figure(name="p50", value=1000 * answers.percentile(0.5), unit="ms"),
                Figure(name="p99", value=1000 * answers.percentile(0.99), unit="ms"),
                Figure(name="slowest", value=1000 * answers.percentile(1.0), unit="ms"),
                Figure(name="rate", value=answers.rate, unit="videos/s"),
            ]
    name = f"{num_requests} videos, {options.num_clients} clients, {Path(spec).name}"
    return report("soak", [Case(name=name, figures=tuple(figures), note="; ".join(answers.failures[:3]))], options)


def _growth(what: str, memory: _Memory, num_requests: int, options: SoakOptions, *, column: int) -> list[Figure]:
    """Growth from the first quarter after the warm-up to the last (medians), and the slope of a line through all.

    A quarter, because a decode process that was just replaced by a fresh one is small: several times in each.
    """
    samples = np.array(memory.samples, np.float64).reshape(-1, 4)
    settled = samples[samples[:, 0] >= options.warmup_share * num_requests]
    if len(settled) < 4:
        raise BenchError("the run was too short to tell how memory grows")
    quarter = len(settled) // 4
    first, last = np.median(settled[:quarter, column]), np.median(settled[-quarter:, column])
    slope = np.polyfit(settled[:, 0], settled[:, column], 1)[0] if np.ptp(settled[:, 0]) else 0.0
    return [
        Figure(name=f"{what}: memory", value=float(last) / 2**20, unit="MiB"),
        Figure(name=f"{what}: growth", value=float(last / first - 1), at_most=FLAT),
        Figure(name=f"{what}: slope", value=float(slope) * 1000 / 2**10, unit="KiB per 1,000 videos"),
    ]
