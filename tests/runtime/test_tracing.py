"""Tracing: the spans of requests, their contents, and disabled tracing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from support.live import live_service
from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, classify, colour_video, serving, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.telemetry.tracing import RequestTracer, TracingUnavailable, record_stage, stage

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT}-01"
SECRET = "unicorn parade"


class Fails(DummyClassifier):
    """Fails on black videos."""

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if any(video.mean() < 20 for video in frames):
            raise RuntimeError("CUDA error in /home/somebody/kernel.py")
        return super().encode_video(frames)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, exporter: InMemorySpanExporter) -> Iterator[Any]:
    tracer = RequestTracer(SimpleSpanProcessor(exporter), version="7")
    with serving(tmp_path_factory.mktemp("traced"), classifier=Fails(), tracer=tracer) as client:
        yield client


def spans_of(exporter: InMemorySpanExporter, request: Any) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The request's span, and its stages in order of their start."""
    exporter.clear()
    request()
    spans = exporter.get_finished_spans()
    (root,) = [span for span in spans if span.kind == SpanKind.SERVER]
    return root, sorted((span for span in spans if span is not root), key=lambda span: span.start_time or 0)


def test_classification_has_a_span_with_its_stages(client: Any, exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    add(client, "red")
    video = colour_video(tmp_path / "v.mp4", "red")
    params = {"candidate_labels": [SECRET], "top_k": 1}

    def request() -> None:
        fields = {
            "data": {"params": json.dumps(params)},
            "headers": {"traceparent": TRACEPARENT, "x-request-id": "r-1"},
        }
        files = {"file": (f"{SECRET}.mp4", video.read_bytes(), "video/mp4")}
        assert client.post("/v1/classify", files=files, **fields).status_code == 200

    root, stages = spans_of(exporter, request)
    assert root.name == "POST /classify"
    assert root.parent is not None and f"{root.parent.span_id:016x}" == PARENT and root.parent.is_remote
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "vidlex.request_id": "r-1",
    }
    assert root.status.status_code == StatusCode.UNSET
    assert root.resource.attributes["service.name"] == "vidlex" and root.resource.attributes["service.version"] == "7"
    names = [span.name for span in stages]
    assert sorted(names) == sorted(["upload", "decode", "queue", "encode", "match", "encode_labels"])
    assert [n for n in names if n in ("upload", "decode", "queue", "encode")] == ["upload", "decode", "queue", "encode"]
    slack_ns = 5_000_000  # recorded stages are dated by two clocks
    for span in stages:
        assert span.parent is not None and span.parent.span_id == root.context.span_id
        assert f"{span.context.trace_id:032x}" == TRACE_ID
        assert root.start_time - slack_ns <= span.start_time <= span.end_time <= root.end_time + slack_ns
    by_name = {span.name: dict(span.attributes or {}) for span in stages}
    assert by_name["upload"] == {"vidlex.bytes": video.stat().st_size}
    assert by_name["encode"] == {"vidlex.frames": 4} and by_name["encode_labels"] == {"vidlex.labels": 1}
    assert by_name["match"] == {"vidlex.cached": False}
    for span in (root, *stages):
        assert SECRET not in span.to_json() and str(tmp_path) not in span.to_json()


def test_registration_has_a_span_for_encoding(client: Any, exporter: InMemorySpanExporter) -> None:
    names = [SECRET, f"{SECRET} two"]
    root, stages = spans_of(
        exporter, lambda: client.post("/labels", json={"labels": [{"name": name} for name in names]}).raise_for_status()
    )
    assert root.parent is None and root.name == "POST /labels"
    assert [(span.name, dict(span.attributes or {})) for span in stages] == [("encode_labels", {"vidlex.labels": 2})]
    root, stages = spans_of(exporter, lambda: client.get("/labels", params={"q": SECRET}).raise_for_status())
    assert root.name == "GET /labels" and not stages
    assert SECRET not in root.to_json()
    path = f"/labels/{SECRET}/nowhere"
    root, _ = spans_of(exporter, lambda: assert_problem(client.get(path), 404, "not_found"))
    assert root.name == "GET unmatched" and SECRET not in root.to_json()


def test_failed_spans_have_the_code_and_no_message(client: Any, exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    junk = b"RIFF" + bytes(4) + b"AVI LIST" + bytes(2000)
    root, stages = spans_of(exporter, lambda: assert_problem(classify(client, junk), 422, "undecodable_video"))
    assert root.attributes is not None and root.attributes["error.type"] == "undecodable_video"
    assert root.status.status_code == StatusCode.UNSET, "client errors are not failures of the service"
    (decode,) = [span for span in stages if span.name == "decode"]
    assert decode.attributes == {"error.type": "undecodable_video"}
    assert decode.status.status_code == StatusCode.ERROR

    black = colour_video(tmp_path / "black.mp4", "black")
    root, stages = spans_of(exporter, lambda: assert_problem(classify(client, black), 503, "encode_failed"))
    assert root.attributes is not None and root.attributes["error.type"] == "encode_failed"
    assert root.status.status_code == StatusCode.ERROR
    assert [span.name for span in stages] == ["upload", "decode", "encode"]
    assert stages[-1].attributes == {"error.type": "encode_failed"}
    for span in (root, *stages):
        assert not span.events and not span.status.description
        assert "kernel.py" not in span.to_json()
    wait_until(lambda: client.get("/readyz").status_code == 200, "the encoder has not recovered")


@pytest.mark.parametrize(
    "given", ["", "rubbish", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE_ID}-{PARENT}-01", "0" * 9999]
)
def test_invalid_traceparent_starts_a_new_trace(client: Any, exporter: InMemorySpanExporter, given: str) -> None:
    root, _ = spans_of(exporter, lambda: client.get("/labels", headers={"traceparent": given}).raise_for_status())
    assert root.parent is None and root.context.trace_id not in (0, int(TRACE_ID, 16))


def test_unsampled_requests_and_health_checks_are_not_traced(client: Any, exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    client.get("/labels", headers={"traceparent": f"{TRACEPARENT[:-2]}00"}).raise_for_status()
    for path in ("/livez", "/readyz", "/metrics"):
        client.get(path).raise_for_status()
    assert exporter.get_finished_spans() == ()


def test_concurrent_requests_have_separate_stages(client: Any, exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    video = colour_video(tmp_path / "v.mp4", "blue").read_bytes()
    exporter.clear()
    threads = [threading.Thread(target=classify, args=(client, video)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = exporter.get_finished_spans()
    roots = [span.context for span in spans if span.kind == SpanKind.SERVER]
    assert len({context.trace_id for context in roots}) == 4
    for context in roots:
        stages = [s for s in spans if s.parent is not None and s.parent.span_id == context.span_id]
        assert sorted(s.name for s in stages) == ["decode", "encode", "match", "queue", "upload"]
        assert {s.context.trace_id for s in stages} == {context.trace_id}


# With a real process and a real collector


@contextmanager
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The address of an OTLP/HTTP collector on loopback, and its received requests."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            received.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_reach_a_collector_and_the_log_has_the_trace_id(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with receiver() as (endpoint, received):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "tagger", "NO_PROXY": "*"}
        with live_service(data_dir, VIDLEX_TRACES="otlp", **variables) as url:
            answer = httpx.get(f"{url}/labels", headers={"traceparent": TRACEPARENT}, timeout=60, trust_env=False)
            answer.raise_for_status()
        # the service has stopped, so all spans have been exported
        resources = [spans for request in received for spans in request.resource_spans]
    names = {
        attribute.value.string_value
        for spans in resources
        for attribute in spans.resource.attributes
        if attribute.key == "service.name"
    }
    assert names == {"tagger"}
    (span,) = [span for spans in resources for scope in spans.scope_spans for span in scope.spans]
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE_ID, PARENT, "GET /labels")
    lines = [json.loads(line) for line in (tmp_path / "data.log").read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["trace_id"] == TRACE_ID and line["request_id"] == answer.headers["x-request-id"]


def test_close_is_bounded_if_the_exporter_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hangs(SimpleSpanProcessor):
        def shutdown(self) -> None:
            release.wait(2 * PATIENCE_SECONDS)

    monkeypatch.setattr("vidlex.service.telemetry.tracing.CLOSE_SECONDS", 0.1)
    tracer = RequestTracer(Hangs(InMemorySpanExporter()))
    with tracer.start_request({}, "GET", "r"), stage("decode"):
        pass
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(tracer.close).result(PATIENCE_SECONDS)
        finally:
            release.set()


# Disabled or unavailable


def test_disabled_tracing_does_not_import_opentelemetry() -> None:
    code = (
        "import sys\nfrom vidlex.service.app import create_app\nfrom vidlex.service.settings import load_settings\n"
        "create_app(load_settings(model='dummy'))\n"
        "names = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')  # redis imports the SDK's metrics by itself\n"
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIDLEX_")}
    environment = inherited | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    with stage("decode"):
        record_stage("queue", time.monotonic(), 0.1)


@pytest.mark.parametrize("absent", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_missing_sdk_is_reported_with_the_package_to_install(absent: str, tmp_path: Path) -> None:
    code = (
        f"import sys\nsys.modules['{absent}'] = None\n"
        f"sys.argv = ['vidlex', 'serve', '--port', '0', '--model', 'dummy', '--data-dir', {str(tmp_path)!r}]\n"
        "from vidlex.service.cli import main\nsys.exit(main())"
    )
    environment = os.environ | {"VIDLEX_TRACES": "otlp"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert re.search(rf"VIDLEX_TRACES=otlp needs .*{re.escape(absent)}.*pip install 'vidlex\[otel\]'", done.stderr)


def test_unsupported_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracingUnavailable, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf"):
        RequestTracer.over_http()


def test_otel_sdk_disabled_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(SimpleSpanProcessor(exporter))
    with tracer.start_request({}, "GET", "r"), stage("decode"):
        record_stage("queue", time.monotonic(), 0.1)
    assert exporter.get_finished_spans() == ()
