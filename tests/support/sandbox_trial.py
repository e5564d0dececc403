"""A service whose decode process is evil, on a system that lacks some barriers: python -m support.sandbox_trial.

Arguments: an empty folder, the system calls that the system refuses as JSON (by name, with an errno), and the level
that is required. Prints {"isolation": its report, "level": ..., "done": what the process could do} or {"refused": why}.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import structlog

from support.paths import TESTS
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.isolation.report import IsolationLevel
from vidlex.service.decode.isolation.seccomp import refuse
from vidlex.service.decode.isolation.syscalls import prctl
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.decode.process import StartFailed
from vidlex.service.errors import UndecodableVideo

_PR_SET_NO_NEW_PRIVS = 38
_JOB = DecodeJob(FrameGeometry(32), 1)


def main() -> None:
    folder, lacks, required = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if lacks:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        for number, error in {getattr(errno, name): name for name in lacks.values()}.items():
            refuse([name for name, code in lacks.items() if code == error], number)
    print(json.dumps(_try(folder, required)))  # type: ignore[arg-type]


def _try(folder: Path, required: IsolationLevel) -> dict[str, object]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    with ExitStack() as stack:
        facts = _targets(folder, stack)
        path = folder / "evil.mp4"
        path.write_text(json.dumps(facts))
        pool = DecodePool(1, PoolLimits(required_isolation=required), entry="support.evil_decoder:decode")
        try:
            pool.start()
        except StartFailed as error:
            return {"refused": str(error)}
        try:
            with pool.decode_chunks(path, _JOB) as stream:
                list(stream)
        except UndecodableVideo as error:
            found = pool.isolation
            return {
                "level": found.level,
                "reachable": found.reachable,
                "missing": found.missing,
                "done": _with_signals(json.loads(error.internal)),
            }
        finally:
            pool.close()
    raise AssertionError("the file was decoded")


def _with_signals(done: dict[str, list[str]]) -> dict[str, list[str]]:
    if _RECEIVED:
        done.setdefault("signals", []).append("signal by ownership of a descriptor")
    return done


def _targets(folder: Path, stack: ExitStack) -> dict[str, object]:
    for name in ("secret", "other.mp4", "removable", "renamable"):
        (folder / name).write_text("secret")
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(server.getsockname())
    store = stack.enter_context(socket.socket(socket.AF_UNIX))
    store.bind(str(folder / "store.sock"))
    store.listen()
    abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
    abstract.bind(f"\0vidlex-{os.getpid()}")
    abstract.listen()

    def answer_store() -> None:
        while True:
            connection, _ = store.accept()
            connection.recv(16)
            connection.sendall(b"+PONG\r\n")

    def answer_udp() -> None:
        while True:
            udp.sendto(b"x", udp.recvfrom(16)[1])

    for run in (answer_store, answer_udp):
        threading.Thread(target=run, daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda number, _: _RECEIVED.append(number))
    _SECRETS.append(ctypes.create_string_buffer(b"password"))
    return {
        "folder": str(folder),
        "pid": os.getpid(),
        "port": server.getsockname()[1],
        "answers_udp": True,
        "store": str(folder / "store.sock"),
        "abstract": f"vidlex-{os.getpid()}",
        "secret_address": ctypes.addressof(_SECRETS[0]),
    }


_RECEIVED: list[int] = []
_SECRETS: list[ctypes.Array[ctypes.c_char]] = []

if __name__ == "__main__":
    main()
