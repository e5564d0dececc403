"""Processes that submit, take and finish jobs, for tests that kill them: forked from one process, which is quick.

Run as a script with the store's socket and a folder for logs. A line on standard input, ``ROLE NAME``, starts a
process; its id is the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from support.job_stores import ALL_KINDS, ERROR, WEBHOOK, job_store, new_job
from support.paths import ROOT
from vidlex.service.errors import StoreUnavailable
from vidlex.service.jobs.records import JobProgress
from vidlex.service.jobs.store import IdempotencyOf, JobClaim, JobStore
from vidlex.service.labels.store.connection import connect_socket

LEASE_SECONDS = 0.5


class Nursery:
    """In the test's process."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        command = [sys.executable, __file__, str(socket), str(folder)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, role: str, name: str = "") -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{role} {name}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def lines(self, name: str) -> list[list[str]]:
        """Of all logs of this name."""
        texts = [path.read_text() for path in self.folder.glob(f"{name}.*")]
        return [line.split() for text in texts for line in text.splitlines()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class _Log:
    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / f"{name}.{os.getpid()}").open("ab", buffering=0)

    def write(self, *words: object) -> None:
        self._file.write((" ".join(map(str, words)) + "\n").encode())


# -- roles, in processes of their own --


def _worker(jobs: JobStore, folder: Path, _: str) -> None:
    log = _Log(folder, "results")
    source = random.Random()
    while True:
        try:
            claimed = jobs.claim(f"worker {os.getpid()}", ["here"], ALL_KINDS)
            if claimed is None:
                time.sleep(0.01)
                continue
            for part in range(source.randrange(4)):
                time.sleep(source.random() * 0.02)
                claimed.report(JobProgress("decode", "frames", part))
                claimed.renew()
            if source.random() < 0.05:
                claimed.fail(ERROR, may_retry=True)
            else:
                _store_result(claimed, log)
        except StoreUnavailable:
            time.sleep(0.01)


def _store_result(claimed: JobClaim, log: _Log) -> None:
    token = uuid.uuid4().hex
    while True:
        with contextlib.suppress(StoreUnavailable):
            is_stored = claimed.succeed(json.dumps({"token": token}).encode())
            log.write(claimed.job.id, token, "stored" if is_stored else "refused")
            return
        time.sleep(0.01)


def _service(jobs: JobStore, folder: Path, name: str) -> None:
    """Submits jobs one after the other, and repeats what it has not recorded as acknowledged."""
    acknowledged = [line for path in folder.glob(f"acknowledged-{name}.*") for line in path.read_text().splitlines()]
    number = len(acknowledged)
    log, cancels = _Log(folder, f"acknowledged-{name}"), _Log(folder, "cancels")
    source = random.Random()
    while True:
        try:
            new = new_job(
                source.choice(["ada", "eve"]),
                webhook=WEBHOOK,
                place=source.choice([None, "here"]),
                max_attempts=source.choice([3, 100]),
            )
            job, _ = jobs.submit(new, idempotency=IdempotencyOf(f"{name} {number}", "digest"))
            log.write(job.id)
            number += 1
            if source.random() < 0.05:
                cancels.write(job.id)
                jobs.cancel("default", job.id)
            jobs.sweep()
        except StoreUnavailable:
            time.sleep(0.01)
        time.sleep(0.02)


def _racer(jobs: JobStore, folder: Path, _: str) -> None:
    log = _Log(folder, "claims")
    while True:
        claimed = jobs.claim("racer", [], ALL_KINDS)
        if claimed is None:
            time.sleep(0.001)
            continue
        log.write(claimed.job.id)
        assert claimed.succeed(b"1")


def _sleeper(jobs: JobStore, folder: Path, _: str) -> None:
    """Takes a job, and finishes it once there is a file ``go``."""
    log = _Log(folder, "sleeper")
    claimed = None
    while claimed is None:
        claimed = jobs.claim("sleeper", [], ALL_KINDS)
    log.write("taken", claimed.job.id)
    while not (folder / "go").exists():
        time.sleep(0.01)
    log.write("late" if claimed.succeed(b'"late"') else "refused", claimed.renew())


_ROLES: dict[str, Callable[[JobStore, Path, str], None]] = {
    "worker": _worker,
    "service": _service,
    "racer": _racer,
    "sleeper": _sleeper,
}


def main() -> None:
    socket, folder = sys.argv[1:]
    children = []
    for line in sys.stdin:
        role, _, name = line.strip().partition(" ")
        while children and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            children.remove(ended)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.dup2(2, 1)  # the answers' pipe
            store = job_store(connect_socket(socket), lease_seconds=LEASE_SECONDS, retry_seconds=0.05)
            _ROLES[role](store, Path(folder), name)
            os._exit(0)
        children.append(pid)
        print(pid, flush=True)
    for pid in children:  # none, unless the test has failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
