"""A store and service replicas as separate processes, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis

from support.live import wait_ready
from support.processes import until
from vidlex.service.labels.embedded.server_files import ServerFiles, server_binary
from vidlex.service.labels.store.connection import connect_socket


class StoreProcess:
    """A separate Valkey server that syncs every write to the disk before it replies."""

    def __init__(self, folder: Path) -> None:
        self._files = ServerFiles(folder)
        self._files.create()
        self.socket = self._files.choose_socket()  # fits even if ``folder`` is long
        self._command = [str(server_binary()), "--port", "0", "--unixsocket", str(self.socket)]
        self._command += ["--dir", str(self._files.folder)]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

    def client(self) -> redis.Redis:
        return connect_socket(str(self.socket))

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._files.clear_socket()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client().ping())
        return False


class Replica:
    """`vidlex serve` on a port that stays the same across restarts."""

    def __init__(self, folder: Path, store_url: str, **environment: str) -> None:
        self._folder = folder
        self._log = folder.parent / f"{folder.name}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
        self._environment = inherited | {"VIDLEX_REDIS_URL": store_url, "VIDLEX_DECODE_WORKERS": "1"} | environment
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Returns once the port is open; see ``wait``."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", port, "--model", "dummy", "--json"]
        command += ["--data-dir", str(self._folder), "--parent", str(os.getpid())]
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self._environment, start_new_session=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        self.url = str(json.loads(line)["url"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        assert self._process is not None
        wait_ready(self.url, self._process, self._log)

    def kill(self) -> None:
        """kill -9. The decode processes end when their pipes close."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.communicate()


@contextlib.contextmanager
def two_replicas(folder: Path, **environment: str) -> Iterator[tuple[StoreProcess, list[Replica]]]:
    store = StoreProcess(folder / "store")
    replicas = [Replica(folder / name, store.url, **environment) for name in ("a", "b")]
    try:
        store.start()
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.wait()
        yield store, replicas
    finally:
        for replica in replicas:
            replica.kill()
        store.close()
