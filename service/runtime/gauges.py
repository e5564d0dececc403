"""Gauges and counters of the running parts, read at each scrape of /metrics; 0 before the parts exist."""

from __future__ import annotations

from collections.abc import Callable

from vidlex.service.metrics import Metrics
from vidlex.service.models.served_model import ServedModel
from vidlex.service.runtime.runtime import Runtime


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

    def revision(served: ServedModel) -> int:
        return max((v.sync.revision for v in served.open_vocabularies() if v.namespace == namespace), default=0)

    metrics.gauge("vidlex_labels", "Labels that videos are compared with", model(num_labels))
    metrics.gauge("vidlex_revision", "Revision of the default namespace", model(revision))
    metrics.gauge("vidlex_encoder_works", "1 if a device is healthy", model(lambda m: m.engine.is_healthy))
    metrics.gauge("vidlex_devices_working", "Healthy devices", model(lambda m: m.engine.num_healthy))
    metrics.gauge("vidlex_queued_frames", "Frames queued to encode", model(lambda m: m.engine.scheduler.queued_frames))
    metrics.gauge("vidlex_queued_labels", "Labels queued to encode", model(lambda m: m.engine.scheduler.queued_labels))
    metrics.gauge("vidlex_queued_videos", "Files queued or being decoded", runtime(lambda r: r.pool.num_unfinished))
    metrics.gauge("vidlex_decode_workers_alive", "Decode processes", runtime(lambda r: r.pool.num_alive))
    metrics.counter("vidlex_decode_restarts", "Decode processes replaced", runtime(lambda r: r.pool.num_restarts))
    metrics.gauge("vidlex_videos_at_work", "Classify requests", runtime(lambda r: r.context.admission.num_working))
    metrics.gauge("vidlex_uploads_in_progress", "Uploads", runtime(lambda r: r.context.spool.num_uploads))
    metrics.gauge(
        "vidlex_retry_slots", "Outstanding Retry-After slots", runtime(lambda r: r.context.admission.num_slots)
    )
    metrics.gauge("vidlex_feature_cache_bytes", "Cached video features", runtime(lambda r: r.feature_cache.num_bytes))
    metrics.gauge("vidlex_label_cache_bytes", "Label vectors on disk", runtime(lambda r: r.label_cache.num_bytes))
    metrics.gauge("vidlex_ready", "1 if /readyz answers 200", runtime(lambda r: r.readiness().status == "ready"))
