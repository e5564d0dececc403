"""Traces by OpenTelemetry: a span for each request, and under it one for each stage of its work.

Off unless ``VIDLEX_TRACES=otlp``; then the standard variables ``OTEL_*`` say where the spans go, under which service
name and how many. Off, nothing of OpenTelemetry is imported from here, and a stage costs one look at a variable.

Spans tell routes, codes, counts and times: never the text of a label, the name of a file, a path, a query or the
message of an exception. Imports nothing of ours.
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

CLOSE_SECONDS = 3.0
"""Longest wait for the last spans to be taken when the service stops; a collector that is away must not hold it up."""
_PROTOCOL = "http/protobuf"


class TracesUnavailable(RuntimeError):
    """Traces are asked for and cannot be made. Written for a person."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the spans of a request's stages belong."""

    tracer: Tracer
    context: Context


_place: ContextVar[_Place | None] = ContextVar("vidlex_trace", default=None)


class Traces:
    """One for each application; ``close`` at the end."""

    def __init__(self, processor: SpanProcessor, *, version: str = "") -> None:
        """``processor`` gets the ended spans: `over_http` makes the usual one. Raises TracesUnavailable."""
        try:
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            raise _missing(error) from None
        # what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes last, and so wins
        ours = Resource.create({"service.name": "vidlex", "service.version": version})
        resource = ours.merge(OTELResourceDetector().detect())
        # Never the process-wide provider: FastAPI would add spans of its own, with paths and queries.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vidlex", version)

    @classmethod
    def over_http(cls, *, version: str = "") -> Traces:
        """Sends to ``OTEL_EXPORTER_OTLP_ENDPOINT``, in the background. Raises TracesUnavailable."""
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
                raise TracesUnavailable(f"{name}: only {_PROTOCOL} is spoken")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise _missing(error) from None
        return cls(BatchSpanProcessor(OTLPSpanExporter()), version=version)

    def request(self, headers: Mapping[str, str], method: str, request_id: str) -> RequestSpan:
        """The span of a request, as a child of the caller's if its ``traceparent`` names one."""
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
        """Send what is left, for at most CLOSE_SECONDS."""
        thread = threading.Thread(target=self._provider.shutdown, name="vidlex-traces-end", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)


class RequestSpan:
    """A context: stages inside it, also in threads that it starts through anyio, become its children."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry.trace import format_trace_id, set_span_in_context

        self._span = span
        self._place = _Place(tracer, set_span_in_context(span))
        self._token: Token[_Place | None] | None = None
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        """32 hexadecimal digits, for the log."""

    def __enter__(self) -> RequestSpan:
        self._token = _place.set(self._place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _place.reset(self._token)
        if error is not None:
            _tell_error(self._span, error)
        self._span.end()

    def tell(self, method: str, route: str, status: int, code: str | None) -> None:
        """How the request ended: ``code`` is the stable one of its problem document. A 4xx is the caller's error, so
        the span is not marked as failed."""
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if code is not None:
            self._span.set_attribute("error.type", code)
        if status >= 500:
            _mark_failed(self._span)


@contextmanager
def stage(name: str, **attributes: Attribute) -> Iterator[None]:
    """A span around a stage of the request at work; outside of a request, or with traces off, nothing."""
    place = _place.get()
    if place is None:
        yield
        return
    span = place.tracer.start_span(name, context=place.context, attributes=_named(attributes))
    try:
        yield
    except BaseException as error:
        _tell_error(span, error)
        raise
    finally:
        span.end()


def past_stage(
    name: str, started: float, seconds: float, error: BaseException | None = None, **attributes: Attribute
) -> None:
    """As ``stage``, for one that was timed by itself: ``started`` is a time of ``time.monotonic``."""
    place = _place.get()
    if place is None:
        return
    start_ns = time.time_ns() - round((time.monotonic() - started) * 1e9)
    span = place.tracer.start_span(name, context=place.context, attributes=_named(attributes), start_time=start_ns)
    if error is not None:
        _tell_error(span, error)
    span.end(start_ns + round(seconds * 1e9))


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"vidlex.{name}": value for name, value in attributes.items()}


def _tell_error(span: Span, error: BaseException) -> None:
    """Its stable code, or its type: a message may hold anything."""
    span.set_attribute("error.type", getattr(error, "code", type(error).__name__))
    _mark_failed(span)


def _mark_failed(span: Span) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)


def _missing(error: ImportError) -> TracesUnavailable:
    return TracesUnavailable(
        f"VIDLEX_TRACES=otlp needs OpenTelemetry's SDK and its exporter ({error.name} is not installed): "
        "pip install 'vidlex[otel]'"
    )
