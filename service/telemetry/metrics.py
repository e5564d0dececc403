"""Prometheus metrics of one application. A separate registry, because tests run several applications per process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Stage = Literal["upload", "queue", "decode", "encode", "match"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_JOB_SECONDS_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)


class _CallbackCounter(Collector):
    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._text, value=self._read())


class CallbackGauges(Collector):
    """A gauge with one label, whose values are read at each scrape."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self.name, self.label_names, self._text, self._read = name, (label,), text, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self.name, self._text, labels=self.label_names)
        for value, number in self._read().items():
            family.add_metric([value], number)
        yield family


disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of time series


class Metrics:
    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vidlex_requests_total", "Requests by status", ["method", "route", "status"], registry=self.registry
        )
        self.refusals = Counter(
            "vidlex_refusals_total",
            "Error responses by code",
            ["code"],
            registry=self.registry,
        )
        for code in ("overloaded", "share_exceeded", "rate_limited", "deadline_exceeded", "stopping"):
            self.refusals.labels(code)
        self.request_seconds = Histogram(
            "vidlex_request_seconds",
            "Duration of requests",
            ["method", "route", "status"],
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.build = Gauge("vidlex_build_info", "Always 1; what runs", ["version", "python"], registry=self.registry)
        self.stage_seconds = Histogram(
            "vidlex_stage_seconds",
            "Duration of the stages of a classification",
            ["stage"],
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.upload_bytes = Counter("vidlex_upload_bytes_total", "Received bytes of videos", registry=self.registry)
        self.batch_videos = Histogram(
            "vidlex_batch_videos",
            "Videos per forward pass",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.encoded_frames = Counter("vidlex_encoded_frames_total", "Encoded frames", registry=self.registry)
        self.feature_lookups = Counter(
            "vidlex_feature_lookups_total",
            "Lookups in the feature cache",
            ["result"],
            registry=self.registry,
        )
        self.label_lookups = Counter(
            "vidlex_label_lookups_total",
            "Lookups in the label cache",
            ["result"],
            registry=self.registry,
        )
        self.job_attempts = Counter(
            "vidlex_job_attempts_total",
            "Attempts at jobs by this process, by outcome",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.job_seconds = Histogram(
            "vidlex_job_seconds",
            "Duration of attempts at jobs",
            ["kind"],
            buckets=_JOB_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.webhook_attempts = Counter(
            "vidlex_webhook_attempts_total",
            "Tries to send webhooks by this process, by what the delivery is then",
            ["state"],
            registry=self.registry,
        )
        for state in ("pending", "succeeded", "failed"):
            self.webhook_attempts.labels(state)
        for result in ("hit", "miss"):
            self.feature_lookups.labels(result)
            self.label_lookups.labels(result)
        for stage in STAGES:
            self.stage_seconds.labels(stage)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)

    def gauges(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """One gauge per value of ``label``; ``read`` bounds their number."""
        self.registry.register(CallbackGauges(name, text, label, read))

    def counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.registry.register(_CallbackCounter(name, text, read))

    def observe(self, stage: Stage, seconds: float) -> None:
        self.stage_seconds.labels(stage).observe(seconds)

    def on_batch(self, num_videos: int, num_frames: int) -> None:
        self.batch_videos.observe(num_videos)
        self.encoded_frames.inc(num_frames)

    def on_label_lookup(self, num_hits: int, num_misses: int) -> None:
        self.label_lookups.labels("hit").inc(num_hits)
        self.label_lookups.labels("miss").inc(num_misses)

    def on_job_attempt(self, kind: str, outcome: str, seconds: float) -> None:
        self.job_attempts.labels(kind, outcome).inc()
        self.job_seconds.labels(kind).observe(seconds)

    def on_webhook_attempt(self, state: str) -> None:
        self.webhook_attempts.labels(state).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)
