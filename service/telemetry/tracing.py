"""The stages of a request: their times for its log line, and OpenTelemetry traces with a span per request and stage.

Traces are enabled by ``VIDLEX_TRACES=otlp`` and configured by the standard ``OTEL_*`` variables. When disabled, this
module does not import OpenTelemetry. Spans never contain label texts, file names, paths, queries or exception messages.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

Attribute = str | int | float | bool

# Bounds the export of the last spans, so that an unreachable collector does not delay the shutdown.
CLOSE_SECONDS = 3.0
_PROTOCOL = "http/protobuf"


class TracingUnavailable(RuntimeError):
    """Tracing is enabled but its packages or protocol are not available."""


@dataclass(frozen=True, eq=False)
class _Parent:
    tracer: Tracer
    context: Context


_parent: ContextVar[_Parent | None] = ContextVar("vidlex_trace", default=None)
_stage_seconds: ContextVar[dict[str, float] | None] = ContextVar("vidlex_stage_seconds", default=None)


class RequestTracer:
    """Call ``close`` at the end. The constructor and ``over_http`` raise TracingUnavailable."""

    def __init__(self, processor: SpanProcessor, *, version: str = "") -> None:
        try:
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            raise _missing_package(error) from None
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        defaults = Resource.create({"service.name": "vidlex", "service.version": version})
        resource = defaults.merge(OTELResourceDetector().detect())
        # Not the global provider: FastAPI would add spans with paths and queries to it.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vidlex", version)

    @classmethod
    def over_http(cls, *, version: str = "") -> RequestTracer:
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
                raise TracingUnavailable(f"{name}: only {_PROTOCOL} is supported")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise _missing_package(error) from None
        return cls(BatchSpanProcessor(OTLPSpanExporter()), version=version)

    def start_request(self, headers: Mapping[str, str], method: str, request_id: str) -> RequestSpan:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._tracer.start_span(
            method,
            context=TraceContextTextMapPropagator().extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "vidlex.request_id": request_id},
        )
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        thread = threading.Thread(target=self._provider.shutdown, name="vidlex-tracing-close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)


class RequestSpan:
    """A context manager; stages within it become its children, also in threads started through anyio."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry.trace import format_trace_id, set_span_in_context

        self._span = span
        self._parent = _Parent(tracer, set_span_in_context(span))
        self._token: Token[_Parent | None] | None = None
        self.trace_id = format_trace_id(span.get_span_context().trace_id)  # 32 hexadecimal digits

    def __enter__(self) -> RequestSpan:
        self._token = _parent.set(self._parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _parent.reset(self._token)
        if error is not None:
            _record_error(self._span, error)
        self._span.end()

    def set_outcome(self, method: str, route: str, status: int, code: str | None) -> None:
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if code is not None:
            self._span.set_attribute("error.type", code)
        if status >= 500:
            _mark_failed(self._span)


@contextmanager
def timing_stages() -> Iterator[dict[str, float]]:
    """Sums the seconds of each stage within, also in threads that copy the context."""
    seconds: dict[str, float] = {}
    token = _stage_seconds.set(seconds)
    try:
        yield seconds
    finally:
        _stage_seconds.reset(token)


def _add_seconds(name: str, seconds: float) -> None:
    times = _stage_seconds.get()
    if times is not None:
        times[name] = times.get(name, 0.0) + seconds


@contextmanager
def stage(name: str, **attributes: Attribute) -> Iterator[None]:
    started = time.monotonic()
    try:
        with _stage_span(name, **attributes):
            yield
    finally:
        _add_seconds(name, time.monotonic() - started)


@contextmanager
def _stage_span(name: str, **attributes: Attribute) -> Iterator[None]:
    parent = _parent.get()
    if parent is None:
        yield
        return
    span = parent.tracer.start_span(name, context=parent.context, attributes=_prefixed(attributes))
    try:
        yield
    except BaseException as error:
        _record_error(span, error)
        raise
    finally:
        span.end()


def record_stage(
    name: str, started: float, seconds: float, error: BaseException | None = None, **attributes: Attribute
) -> None:
    _add_seconds(name, seconds)
    parent = _parent.get()
    if parent is None:
        return
    start_ns = time.time_ns() - round((time.monotonic() - started) * 1e9)
    span = parent.tracer.start_span(name, context=parent.context, attributes=_prefixed(attributes), start_time=start_ns)
    if error is not None:
        _record_error(span, error)
    span.end(start_ns + round(seconds * 1e9))


def _prefixed(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"vidlex.{name}": value for name, value in attributes.items()}


def _record_error(span: Span, error: BaseException) -> None:
    # Not the message, which could contain anything.
    span.set_attribute("error.type", getattr(error, "code", type(error).__name__))
    _mark_failed(span)


def _mark_failed(span: Span) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)


def _missing_package(error: ImportError) -> TracingUnavailable:
    return TracingUnavailable(
        f"VIDLEX_TRACES=otlp needs OpenTelemetry's SDK and its exporter ({error.name} is not installed): "
        "pip install 'vidlex[otel]'"
    )
