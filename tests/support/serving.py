"""An application in this process, with the dummy model and an embedded store."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from fastapi.testclient import TestClient

from support import videos
from support.processes import PATIENCE_SECONDS
from vidlex.model.classifier import Classifier
from vidlex.model.dummy import DummyClassifier
from vidlex.service.app import create_app
from vidlex.service.settings import Settings
from vidlex.service.telemetry.tracing import RequestTracer

# The default prints all local variables of a traceback, which takes a minute.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Settings that ignore the environment, without caches."""
    fields: dict[str, Any] = {
        "data_dir": folder,
        "model": "dummy",
        "decode_workers": 1,
        "host": "127.0.0.1",
        "redis_url": None,
    }
    fields |= {"feature_cache_bytes": 0, "label_cache_bytes": 0}
    return Settings(**(fields | changes))


@contextmanager
def serving(
    folder: Path,
    *,
    classifier: Classifier | None = None,
    wait: bool = True,
    tracer: RequestTracer | None = None,
    **changes: Any,
) -> Iterator[TestClient]:
    """A client of a ready application. Errors become responses, as over the network."""
    app = create_app(settings_for(folder, **changes), classifier=classifier or DummyClassifier(), tracer=tracer)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        if wait:
            wait_until(lambda: client.get("/readyz").status_code == 200, "the service is not ready")
        yield client


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    tick = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} (after {seconds:.0f} s)"
        tick.wait(0.02)


def colour_video(path: Path, *colours: str, frames_each: int = 10) -> Path:
    """``frames_each`` frames of each colour in order, at 10 frames per second."""

    def paint(number: int) -> Any:
        colour = COLOURS[colours[min(number // frames_each, len(colours) - 1)]]
        return np.tile(np.array(colour, np.uint8), (96, 160, 1))

    return videos.write_video(path, num_frames=frames_each * len(colours), picture=paint, options={"crf": "1"})


def classify(client: Any, video: Path | bytes, **params: Any) -> Any:
    data = video if isinstance(video, bytes) else video.read_bytes()
    fields = {"data": {"params": json.dumps(params)}} if params else {}
    return client.post("/classify", files={"file": ("video.mp4", data, "video/mp4")}, **fields)


def add(client: Any, *names: str, **fields: Any) -> list[dict[str, Any]]:
    labels = []
    for name in names:
        answer = client.post("/labels", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        labels.append(answer.json())
    return labels


def clear(client: Any) -> None:
    while data := client.get("/labels", params={"limit": 1000}).json()["data"]:
        for label in data:
            assert client.delete(f"/labels/{label['id']}").status_code == 204


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The response is a valid problem document and contains no internal details."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    leak = re.search(r"/tmp|/home|Traceback|Error\(|\b0x[0-9a-f]{6}|\.py|redis|(?i:ffmpeg|decord)", answer.text)
    assert leak is None, f"{leak} in {answer.text}"
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
        assert body["retry_after_ms"] == 1000 * int(answer.headers["retry-after"])
    return body
