"""An application in this process that listens on a real socket: for classifiers that a test controls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from support.processes import PATIENCE_SECONDS
from support.serving import settings_for, wait_until
from vidlex.model.classifier import Classifier
from vidlex.model.dummy import DummyClassifier
from vidlex.service.app import create_app
from vidlex.service.runtime.runtime import Runtime


@dataclass(frozen=True)
class Listening:
    url: str
    app: FastAPI

    def client(self, address: str) -> httpx.Client:
        """Clients without an API key differ by their address; loopback has a /8."""
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=self.url, transport=transport, timeout=PATIENCE_SECONDS, trust_env=False)

    @property
    def runtime(self) -> Runtime:
        runtime = self.app.state.context.readiness.__self__
        assert isinstance(runtime, Runtime)
        return runtime

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_SECONDS, trust_env=False).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@contextmanager
def listening(folder: Path, classifier: Classifier | None = None, **changes: Any) -> Iterator[Listening]:
    """A ready service on a free port."""
    app = create_app(settings_for(folder, **changes), classifier=classifier or DummyClassifier())
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([sock],), name="listening", daemon=True)
        thread.start()
        service = Listening(f"http://127.0.0.1:{sock.getsockname()[1]}", app)
        try:
            wait_until(lambda: server.started, "the server does not start")
            wait_until(lambda: _is_ready(service.url), "the service is not ready")
            yield service
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def _is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False).status_code == 200
