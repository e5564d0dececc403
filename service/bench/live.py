"""A real `vidlex serve` process with its own data folder, watched from outside: its memory, its children, its log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
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
    """For plain HTTP alone: loading certificates would take a core for longer than many a request takes."""
    anything = httpx.Limits(max_connections=None)
    transport = httpx.HTTPTransport(verify=False, limits=anything)
    return httpx.Client(base_url=url, timeout=timeout_seconds, transport=transport)


class LiveService:
    """Made by ``live_service``."""

    def __init__(self, url: str, process: subprocess.Popen[str], data_dir: Path, log: Path) -> None:
        self.url = url
        self.data_dir = data_dir
        self._process = process
        self._log = log
        self._self = psutil.Process(process.pid)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def client(self, *, timeout_seconds: float = 120.0) -> httpx.Client:
        return http_client(self.url, timeout_seconds=timeout_seconds)

    def is_ready(self) -> bool:
        with self.client(timeout_seconds=10.0) as client:
            return client.get("/readyz").status_code == 200

    def decoders(self) -> list[int]:
        """Process ids of the decode workers that live."""
        found = []
        for child in self._children():
            try:
                if "vidlex.service.decode.worker" in " ".join(child.cmdline()):
                    found.append(child.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def resident_bytes(self) -> tuple[int, int]:
        """(the service itself, all its decode workers together)."""
        workers = set(self.decoders())
        total = 0
        for child in self._children():
            if child.pid in workers:
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        return int(self._self.memory_info().rss), total

    def num_files(self) -> int:
        """Descriptors that the service itself holds open."""
        return int(self._self.num_fds())

    def num_processes(self) -> int:
        return 1 + len(self._children())

    def uploads(self) -> list[Path]:
        return [path for path in (self.data_dir / "uploads").glob("*/*") if path.is_file()]

    def log_lines(self, event: str) -> int:
        """How many lines of the log hold ``event``."""
        return sum(event in line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines())

    def log_text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        return self.log_text()[-4000:]

    def _children(self) -> list[Any]:
        try:
            children: list[Any] = self._self.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return children


@contextmanager
def live_service(
    data_dir: Path, model: str = "dummy", *, device: str = "auto", **settings: Any
) -> Iterator[LiveService]:
    """A ready service on a free loopback port; ``settings`` as in `Settings`. Raises BenchError if there is none."""
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", model, "--device", device]
    command += ["--data-dir", str(data_dir), "--parent", str(os.getpid()), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIDLEX_")}
    kept = ("VIDLEX_CACHE_DIR", "VIDLEX_LLM_WHEEL")
    environment |= {name: os.environ[name] for name in kept if name in os.environ}
    # The same video or label again is work again, unless a benchmark says otherwise.
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
        if not service.running:
            raise BenchError(f"the service did not start: {service.log_tail()}")
        try:
            if service.is_ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise BenchError(f"the service is not ready after {READY_TIMEOUT_SECONDS:.0f} s: {service.log_tail()}")


class Canary:
    """An address and a file that nobody may open: a loopback server that counts who comes, and a FIFO that notices
    a reader."""

    def __init__(self, folder: Path) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._fifo = folder / "canary"
        os.mkfifo(self._fifo)
        self._closing = False
        self.num_calls = 0
        """Of the address."""
        self.num_readings = 0
        """Of the file; one reader may be counted several times."""
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._answer, self._watch)]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/canary"

    @property
    def path(self) -> Path:
        return self._fifo

    @property
    def num_touches(self) -> int:
        return self.num_calls + self.num_readings

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                if self._closing:
                    return
                self.num_calls += 1

    def _watch(self) -> None:
        while True:
            with self._fifo.open("wb"):  # waits for a reader
                if self._closing:
                    return
                self.num_readings += 1

    def close(self) -> None:
        self._closing = True
        socket.create_connection(self._server.getsockname()).close()
        os.close(os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK))
        for thread in self._threads:
            thread.join(5.0)
        self._server.close()

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
