"""A `vidlex serve` process with a separate data folder, and its memory, child processes and log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from vidlex.service.bench.harness import BenchError

READY_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 60.0


def http_client(url: str, *, timeout_seconds: float = 120.0) -> httpx.Client:
    # Not loading CA certificates, which takes longer than a request.
    transport = httpx.HTTPTransport(verify=False, limits=httpx.Limits(max_connections=None))
    return httpx.Client(base_url=url, timeout=timeout_seconds, transport=transport)


class LiveService:
    def __init__(self, url: str, process: subprocess.Popen[str], data_dir: Path, log: Path) -> None:
        self.url = url
        self.data_dir = data_dir
        self._process = process
        self._log = log
        self._psutil_process = psutil.Process(process.pid)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def client(self, *, timeout_seconds: float = 120.0) -> httpx.Client:
        return http_client(self.url, timeout_seconds=timeout_seconds)

    def is_ready(self) -> bool:
        with self.client(timeout_seconds=10.0) as client:
            return client.get("/readyz").status_code == 200

    def decoders(self) -> list[int]:
        found = []
        for child in self._children():
            try:
                if "vidlex.service.decode.worker" in " ".join(child.cmdline()):
                    found.append(child.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def resident_bytes(self) -> tuple[int, int]:
        # (the service process, the sum of its decode workers)
        workers = set(self.decoders())
        total = 0
        for child in self._children():
            if child.pid in workers:
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        return int(self._psutil_process.memory_info().rss), total

    def num_files(self) -> int:
        return int(self._psutil_process.num_fds())

    def num_processes(self) -> int:
        return 1 + len(self._children())

    def uploads(self) -> list[Path]:
        return [path for path in (self.data_dir / "uploads").glob("*/*") if path.is_file()]

    def log_text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        return self.log_text()[-4000:]

    def _children(self) -> list[Any]:
        try:
            children: list[Any] = self._psutil_process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return children


@contextmanager
def live_service(
    data_dir: Path, model: str = "dummy", *, device: str = "auto", **settings: Any
) -> Iterator[LiveService]:
    """A service on a free loopback port; ``settings`` as in `Settings`. Feature and label caches are off by default.

    Raises BenchError if the service does not become ready.
    """
    command = [sys.executable, "-P", "-m", "vidlex.service.cli", "serve", "--port", "0", "--json"]
    command += ["--model", model, "--device", device, "--data-dir", str(data_dir), "--parent", str(os.getpid())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIDLEX_")}
    inherited = ("VIDLEX_CACHE_DIR", "VIDLEX_WHEELS")
    environment |= {name: os.environ[name] for name in inherited if name in os.environ}
    environment |= {"VIDLEX_FEATURE_CACHE_BYTES": "0", "VIDLEX_LABEL_CACHE_BYTES": "0"}
    environment |= {f"VIDLEX_{name.upper()}": str(value) for name, value in settings.items()}
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the service did not start: {log.read_text()[-2000:]}")
        service = LiveService(str(json.loads(line)["url"]), process, data_dir, log)
        _wait_ready(service)
        yield service
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_ready(service: LiveService) -> None:
    end = time.monotonic() + READY_TIMEOUT_SECONDS
    while time.monotonic() < end:
        if not service.is_running:
            raise BenchError(f"the service did not start: {service.log_tail()}")
        try:
            if service.is_ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise BenchError(f"the service is not ready after {READY_TIMEOUT_SECONDS:.0f} s: {service.log_tail()}")
