"""The application: routes, middleware and error handlers around a Runtime, which holds the parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio
from fastapi import FastAPI

from vidlex.model.classifier import Classifier
from vidlex.service.access.gate import Gate, GateOptions
from vidlex.service.http import openapi, problems, strict_query
from vidlex.service.http.guard import AccessGuard
from vidlex.service.http.middleware import RequestContext
from vidlex.service.http.shutdown import Draining
from vidlex.service.metrics import Metrics
from vidlex.service.routes import classify, health, keys, label_cards, labels, models, web
from vidlex.service.runtime.runtime import Runtime
from vidlex.service.settings import Settings
from vidlex.service.tracing import Traces

_DESCRIPTION = (
    "Video tagging with an open vocabulary. Every path is also served under /v1. Where API keys are in use, send one "
    "as `Authorization: Bearer KEY` or `X-API-Key: KEY`. The header `X-Vidlex-Namespace` chooses the vocabulary, "
    "unless the key belongs to one. Errors are application/problem+json with a stable `code`."
)


def create_app(
    settings: Settings,
    *,
    classifier: Classifier | None = None,
    on_fatal: Callable[[str], None] | None = None,
    draining: Draining | None = None,
    traces: Traces | None = None,
) -> FastAPI:
    """The application; everything is made when its lifespan begins.

    ``classifier`` replaces the one that ``settings.model`` names. ``on_fatal`` is told why, on another thread, when
    the service can never become ready; without it the service stays up and /readyz says so. ``draining`` is begun by
    whoever stops the service. ``traces`` replaces those that ``settings.traces`` asks for.
    Raises KeyFileError and TracesUnavailable.
    """
    metrics = Metrics()
    if traces is None and settings.traces == "otlp":
        traces = Traces.over_http(version=_version())
    draining = draining or Draining()
    gate = Gate(
        GateOptions(
            insecure=settings.insecure,
            loopback=settings.on_loopback,
            key_file=settings.api_keys_file,
            requests_per_second=settings.rate_limit_per_second,
            burst=settings.rate_limit_burst,
        )
    )
    running: list[Runtime] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runtime = Runtime(settings, metrics, classifier, gate, draining=draining, on_fatal=on_fatal or (lambda _: None))
        app.state.context = runtime.context
        app.state.gate = gate
        running[:] = [runtime]
        runtime.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(runtime.stop)
            if traces is not None:
                await anyio.to_thread.run_sync(traces.close)

    def gauge(read: Callable[[Runtime], float]) -> Callable[[], float]:
        return lambda: read(running[0]) if running else 0.0

    metrics.gauge("vidlex_labels", "Labels that videos are compared with", gauge(lambda r: r.num_labels))
    metrics.gauge("vidlex_decode_workers_alive", "Decode processes", gauge(lambda r: r.pool.alive_workers))
    metrics.gauge("vidlex_videos_at_work", "Classify requests", gauge(lambda r: r.context.admission.count))
    metrics.gauge("vidlex_uploads_in_progress", "Uploads", gauge(lambda r: r.context.spool.num_uploads))
    metrics.gauge("vidlex_queued_frames", "Frames that wait for the encoder", gauge(lambda r: r.queued_frames))
    metrics.gauge("vidlex_feature_cache_bytes", "Features kept", gauge(lambda r: r.features.num_bytes))
    metrics.gauge("vidlex_label_cache_bytes", "Label vectors on disk", gauge(lambda r: r.label_cache.num_bytes))
    metrics.gauge("vidlex_queued_labels", "Label names that wait for the encoder", gauge(lambda r: r.queued_labels))
    metrics.gauge("vidlex_queued_videos", "Files at or before a decoder", gauge(lambda r: r.pool.unfinished))
    metrics.gauge(
        "vidlex_promised_places", "Refused videos expected back", gauge(lambda r: r.context.admission.num_promises)
    )
    metrics.gauge("vidlex_revision", "Revision of the default namespace", gauge(lambda r: r.revision))
    metrics.gauge("vidlex_encoder_works", "1 when the last forward pass worked", gauge(lambda r: r.encoder_works))
    metrics.gauge("vidlex_devices_working", "Devices that encode", gauge(lambda r: r.devices_working))
    metrics.counter("vidlex_decode_restarts", "Decode processes replaced", gauge(lambda r: r.pool.num_restarts))
    metrics.gauge("vidlex_ready", "1 when /readyz says ready", gauge(lambda r: r.readiness().status == "ready"))

    app = FastAPI(
        title="Vidlex",
        version=_version(),
        description=_DESCRIPTION,
        docs_url=None,  # the viewers load scripts from the network
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        # Its own traces, metrics and logs tell paths, queries and messages of errors to whatever is set up globally.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.add_middleware(AccessGuard, gate=gate)
    app.add_middleware(
        RequestContext, metrics=metrics, answered_hosts=settings.answered_hosts(), draining=draining, traces=traces
    )
    problems.install(app)
    for router in (labels.router, label_cards.router, classify.router, models.router, health.router, keys.router):
        # Whoever watches the service may add what he likes: no balancer shall take it out for that.
        strict = [] if router is health.router else [strict_query.ONLY_KNOWN]
        app.include_router(router, dependencies=strict)
        app.include_router(router, dependencies=strict, prefix="/v1", include_in_schema=False)
    app.include_router(web.router)
    openapi.install(app)
    return app


def _version() -> str:
    try:
        return version("vidlex")
    except PackageNotFoundError:  # run from a bare checkout
        return "0"
