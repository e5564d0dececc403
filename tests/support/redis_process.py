"""A Valkey server of any configuration as a process on a Unix socket, for tests that harm it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis

from support.processes import until
from vidlex.service.labels.embedded.server_files import server_binary

DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": '""', "maxmemory-policy": "noeviction"}


class RedisProcess:
    """Settings, with ``_`` for ``-``, replace those of a durable server."""

    def __init__(self, folder: Path, *, user: str = "", password: str = "", **settings: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sockets = tempfile.TemporaryDirectory(prefix="vidlex-test-", dir="/tmp")
        self.socket = Path(self._sockets.name) / "valkey.sock"
        self.settings = DURABLE | {key.replace("_", "-"): value for key, value in settings.items()}
        self._credentials = f"{user}:{password}@" if password else ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._credentials}{quote(str(self.socket))}"

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def start(self) -> None:
        lines = [f"{key} {value}\n" for key, value in self.settings.items()]
        lines += ["port 0\n", f"unixsocket {self.socket}\n", f"dir {self.folder}\n"]
        config = Path(self._sockets.name) / "valkey.conf"
        config.write_text("".join(lines))
        self._process = subprocess.Popen([str(server_binary()), str(config)], stdout=subprocess.DEVNULL)
        until(self._answers)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            try:
                return bool(self.client().ping())
            except redis.AuthenticationError:
                return True
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self._sockets.cleanup()
