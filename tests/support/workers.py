"""`vidlex worker` processes for tests that stop and kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO


class WorkerProcess:
    """``data_dir`` is that of a service, unless the environment names a store."""

    def __init__(self, data_dir: Path, *, log: Path | None = None, model: str = "dummy", **environment: str) -> None:
        self._command = [sys.executable, "-m", "vidlex.service.cli", "worker", "--model", model, "--json"]
        self._command += ["--data-dir", str(data_dir), "--parent", str(os.getpid())]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
        self._environment = inherited | {"VIDLEX_DECODE_WORKERS": "1"} | environment
        self.log = log or data_dir.parent / f"{data_dir.name}.worker.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns at once; see ``wait``."""
        with self.log.open("a") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it takes jobs."""
        line = self._stdout.readline()
        assert line, self.log.read_text()
        json.loads(line)

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=seconds)
        return self._process.returncode

    def kill(self) -> None:
        """kill -9. The decode processes end when their pipes close."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _stdout(self) -> IO[str]:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout
