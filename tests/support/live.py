"""A real `vidlex serve` process for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_TIMEOUT_SECONDS = 120.0


@contextmanager
def live_service(data_dir: Path, model: str = "dummy", **environment: str) -> Iterator[str]:
    """The URL of a ready service on a free port; stops it at the end."""
    with live_process(data_dir, model, **environment) as (url, _):
        yield url


@contextmanager
def live_process(
    data_dir: Path, model: str = "dummy", *, port: int = 0, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """As ``live_service``, with the process."""
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", str(port), "--model", model, "--json"]
    command += ["--data-dir", str(data_dir), "--parent", str(os.getpid())]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=inherited | environment
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        url = str(json.loads(line)["url"])
        wait_ready(url, process, log)
        yield url, process
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode in (0, -15), log.read_text()


def refused_start(data_dir: Path, **environment: str) -> str:
    """What `vidlex serve` prints when it refuses to start."""
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", "dummy"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    done = subprocess.run(
        [*command, "--data-dir", str(data_dir)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def wait_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready: {log.read_text()}")
