"""What /metrics tells. One registry for each application, so that several live in one process (tests, say)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

Stage = Literal["upload", "queue", "decode", "encode", "match"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class _Count(Collector):
    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._text, value=self._read())


class Metrics:
    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vidlex_requests_total", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self.refusals = Counter(
            "vidlex_refusals_total",
            "Requests that were answered with an error, by its code",
            ["code"],
            registry=self.registry,
        )
        for code in ("overloaded", "rate_limited", "deadline_exceeded", "stopping"):
            self.refusals.labels(code)
        self.request_seconds = Histogram(
            "vidlex_request_seconds",
            "Time from the request's head to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "vidlex_stage_seconds",
            "Time of each stage of a classification",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.upload_bytes = Counter("vidlex_upload_bytes_total", "Bytes of received videos", registry=self.registry)
        self.batch_videos = Histogram(
            "vidlex_batch_videos",
            "Videos in one forward pass",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.encoded_frames = Counter("vidlex_encoded_frames_total", "Frames encoded", registry=self.registry)
        self.feature_lookups = Counter(
            "vidlex_feature_lookups_total",
            "Classifications by whether the video's features were there already",
            ["result"],
            registry=self.registry,
        )
        self.label_lookups = Counter(
            "vidlex_label_lookups_total",
            "Label names to encode, by whether their vectors were there already",
            ["result"],
            registry=self.registry,
        )
        for result in ("hit", "miss"):
            self.feature_lookups.labels(result)
            self.label_lookups.labels(result)
        for stage in ("upload", "queue", "decode", "encode", "match"):
            self.stage_seconds.labels(stage)  # shown as zero before the first video

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A count that somebody else keeps, read at each scrape as ``name`` with ``_total``."""
        self.registry.register(_Count(name, text, read))

    def observe(self, stage: Stage, seconds: float) -> None:
        self.stage_seconds.labels(stage).observe(seconds)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Observes the time of a block that ends well."""
        started = monotonic()
        yield
        self.observe(stage, monotonic() - started)

    def on_batch(self, num_videos: int, num_frames: int) -> None:
        self.batch_videos.observe(num_videos)
        self.encoded_frames.inc(num_frames)

    def on_label_lookup(self, num_hits: int, num_misses: int) -> None:
        self.label_lookups.labels("hit").inc(num_hits)
        self.label_lookups.labels("miss").inc(num_misses)

    def render(self) -> bytes:
        return generate_latest(self.registry)
