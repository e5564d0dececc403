"""The FastAPI application: routes, middleware and error handlers around a Runtime."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from vidlex.model.classifier import Classifier
from vidlex.service.access.access_control import AccessControl, AccessOptions
from vidlex.service.audit import AuditLog
from vidlex.service.http import cors, problems, strict_query
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.guard import AccessGuard
from vidlex.service.http.methods import HttpMethods
from vidlex.service.http.middleware import ErrorBoundary, RequestContext
from vidlex.service.http.openapi import document
from vidlex.service.machine.version import service_version
from vidlex.service.routes import (
    calibration,
    classify,
    exports,
    feedback,
    health,
    job_files,
    jobs,
    keys,
    label_cards,
    labels,
    models,
    video_search,
    videos,
    web,
    webhooks,
)
from vidlex.service.runtime.gauges import register_gauges
from vidlex.service.runtime.runtime import Runtime
from vidlex.service.settings import Settings
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.telemetry.tracing import RequestTracer


def create_app(
    settings: Settings,
    *,
    classifier: Classifier | None = None,
    on_fatal: Callable[[str], None] | None = None,
    shutdown: GracefulShutdown | None = None,
    tracer: RequestTracer | None = None,
) -> FastAPI:
    """Create the application; its parts start with the lifespan.

    ``classifier`` replaces ``settings.model`` and ``tracer`` replaces ``settings.traces``. ``on_fatal`` is called with
    the reason, from another thread, if the service can never become ready. Raises KeyFileError and TracingUnavailable.
    """
    metrics = Metrics()
    metrics.build.labels(service_version(), platform.python_version()).set(1)
    audit = AuditLog(settings.audit_log, settings.data_dir)
    metrics.counter("vidlex_audit_failures", "Lines of the audit log that were lost", lambda: audit.num_failures)
    if tracer is None and settings.traces == "otlp":
        tracer = RequestTracer.over_http(version=service_version())
    shutdown = shutdown or GracefulShutdown()
    access = AccessControl(
        AccessOptions(
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
        runtime = Runtime(
            settings, metrics, classifier, access, shutdown=shutdown, on_fatal=on_fatal or (lambda _: None)
        )
        app.state.context = runtime.context
        app.state.access = access
        running[:] = [runtime]
        runtime.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(runtime.stop)
            if tracer is not None:
                await anyio.to_thread.run_sync(tracer.close)
            audit.close()

    register_gauges(metrics, lambda: running[0] if running else None, settings.namespace)

    app = FastAPI(
        title="Vidlex",
        version=service_version(),
        docs_url=None,  # its viewer loads scripts from the network; see routes/web.py
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        # FastAPI's own telemetry contains paths, queries and error messages.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    # The last one is the outermost.
    app.add_middleware(HttpMethods)
    app.add_middleware(AccessGuard, access=access)
    app.add_middleware(ErrorBoundary, shutdown=shutdown)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **cors.OPTIONS)
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        audit=audit,
        allowed_hosts=settings.resolve_allowed_hosts(),
        shutdown=shutdown,
        cors_origins=settings.cors_origins,
        tracer=tracer,
    )
    problems.install(app)
    routers = (
        labels,
        label_cards,
        classify,
        jobs,
        job_files,
        videos,
        video_search,
        feedback,
        exports,
        webhooks,
        calibration,
        models,
        health,
        keys,
    )
    for router in (module.router for module in routers):
        # Load balancers may add query parameters to health checks.
        strict = [] if router is health.router else [strict_query.STRICT_PARAMETERS]
        app.include_router(router, dependencies=strict)
        app.include_router(router, dependencies=strict, prefix="/v1", include_in_schema=False)
    app.include_router(web.router)
    document.install(app)
    return app
