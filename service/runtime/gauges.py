"""Gauges and counters of the running parts, read at each scrape of /metrics; 0 before the parts exist."""

from __future__ import annotations

from collections.abc import Callable

from vidlex.service.decode.isolation.report import ISOLATION_LEVELS, TARGETS
from vidlex.service.models.served_model import ServedModel
from vidlex.service.runtime.runtime import Runtime
from vidlex.service.telemetry.metrics import Metrics

_MAX_NAMESPACES = 100  # in metrics


def register_gauges(metrics: Metrics, current_runtime: Callable[[], Runtime | None], namespace: str) -> None:
    def runtime(read: Callable[[Runtime], float]) -> Callable[[], float]:
        def value() -> float:
            running = current_runtime()
            return 0.0 if running is None else read(running)

        return value

    def model(read: Callable[[ServedModel], float]) -> Callable[[], float]:
        def value(running: Runtime) -> float:
            served = running.model
            return 0.0 if served is None else read(served)

        return runtime(value)

    def num_labels(served: ServedModel) -> int:
        return sum(len(vocabulary.index) for vocabulary in served.open_vocabularies())

    def num_quarantined(served: ServedModel) -> int:
        return sum(vocabulary.sync.num_quarantined for vocabulary in served.open_vocabularies())

    def revisions() -> dict[str, float]:
        running = current_runtime()
        served = None if running is None else running.model
        if served is None:
            return {}
        found = {v.namespace: float(v.sync.revision) for v in served.open_vocabularies()}
        named = sorted(found, key=lambda name: (name != namespace, name))[:_MAX_NAMESPACES]
        return {name: found[name] for name in named}

    def isolated() -> dict[str, float]:
        running = current_runtime()
        found = None if running is None else running.pool.isolation
        return {} if found is None else {level: float(level == found.level) for level in ISOLATION_LEVELS}

    def reachable() -> dict[str, float]:
        running = current_runtime()
        found = None if running is None else running.pool.isolation
        return {} if found is None else {target: float(target in found.reachable) for target in TARGETS}

    def job_counts() -> dict[str, float]:
        running = current_runtime()
        runner = None if running is None else running.job_runner
        return {} if runner is None else {state: float(number) for state, number in runner.counts.items()}

    def num_jobs(running: Runtime) -> float:
        return 0.0 if running.job_runner is None else running.job_runner.num_running

    metrics.gauge("vidlex_labels", "Labels that videos are compared with", model(num_labels))
    metrics.gauge("vidlex_labels_quarantined", "Labels left out, since their record is damaged", model(num_quarantined))
    metrics.gauges("vidlex_revision", "Revision of namespaces in memory, at most 100", "namespace", revisions)
    metrics.gauge("vidlex_encoder_works", "1 if a device is healthy", model(lambda m: m.engine.is_healthy))
    metrics.gauge("vidlex_devices_working", "Healthy devices", model(lambda m: m.engine.num_healthy))
    metrics.gauge("vidlex_queued_frames", "Frames queued to encode", model(lambda m: m.engine.scheduler.queued_frames))
    metrics.gauge("vidlex_queued_labels", "Labels queued to encode", model(lambda m: m.engine.scheduler.queued_labels))
    metrics.gauge("vidlex_queued_videos", "Files queued or being decoded", runtime(lambda r: r.pool.num_unfinished))
    metrics.gauge("vidlex_decode_workers_alive", "Decode processes", runtime(lambda r: r.pool.num_alive))
    metrics.counter("vidlex_decode_restarts", "Decode processes replaced", runtime(lambda r: r.pool.num_restarts))
    metrics.gauges("vidlex_decode_isolated", "1 for the level of the decode processes", "level", isolated)
    metrics.gauges("vidlex_decode_reachable", "1 for what code in a decode process could reach", "target", reachable)
    metrics.gauge("vidlex_videos_at_work", "Classify requests", runtime(lambda r: r.context.admission.num_working))
    metrics.gauges("vidlex_jobs", "Jobs of all processes, as of the last sweep", "state", job_counts)
    metrics.gauge("vidlex_jobs_at_work", "Jobs that this process works on", runtime(num_jobs))
    metrics.gauge("vidlex_uploads_in_progress", "Uploads", runtime(lambda r: r.context.spool.num_uploads))
    metrics.gauge(
        "vidlex_retry_slots", "Outstanding Retry-After slots", runtime(lambda r: r.context.admission.num_slots)
    )
    metrics.gauge("vidlex_feature_cache_bytes", "Cached video features", runtime(lambda r: r.feature_cache.num_bytes))
    metrics.gauge("vidlex_label_cache_bytes", "Label vectors on disk", runtime(lambda r: r.label_cache.num_bytes))
    metrics.gauge("vidlex_ready", "1 if /readyz answers 200", runtime(lambda r: r.readiness().status == "ready"))
