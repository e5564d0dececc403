"""Workers that start fast, for tests that kill many: forked from a process that has imported everything.

As a program: reads JSON lines {"log": path, "settings": {...}} and answers each with the id of a new process, which is
`vidlex worker` but for its command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Self

from support.paths import TESTS
from support.processes import wait_for_end


class Nursery:
    def __init__(self, **settings: Any) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
        inherited["PYTHONPATH"] = str(TESTS)
        command = [sys.executable, "-m", "support.worker_nursery"]
        self._settings = settings
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=inherited
        )
        self._living: set[int] = set()

    def start(self, data_dir: Path, log: Path) -> int:
        order = {"log": str(log), "settings": {**self._settings, "data_dir": str(data_dir)}}
        self._pipe(self._process.stdin).write(json.dumps(order) + "\n")
        self._pipe(self._process.stdin).flush()
        pid = int(self._pipe(self._process.stdout).readline())
        self._living.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._living.discard(pid)
        wait_for_end(pid)

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._living):
            self.kill(pid)
        self._process.communicate(timeout=60)


def _main() -> None:
    from vidlex.service.settings import load_settings
    from vidlex.service.worker import work

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            reason = work(load_settings(**order["settings"]))
            os._exit(1 if reason else 0)
        print(pid, flush=True)


if __name__ == "__main__":
    _main()
