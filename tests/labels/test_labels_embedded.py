"""The embedded store as real processes: kill -9 of the service and the server, locks, orphaned servers, paths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from support.paths import ROOT
from support.processes import PATIENCE_SECONDS
from support.stores import add, restart_server
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded import launch
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.embedded.server_files import (
    MAX_SOCKET_PATH_BYTES,
    DataFolderInUse,
    ServerFiles,
    server_binary,
)
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label

SERVICE = """
import sys, threading
from pathlib import Path
from vidlex.service.labels.embedded.server import EmbeddedStore
embedded = EmbeddedStore(Path(sys.argv[1]))
embedded.start()
print(embedded.pid, embedded.socket_path, flush=True)
client = embedded.client()
number = 0
while True:
    client.rpush("numbers", number)
    print(number, flush=True)  # acknowledged
    number += 1
"""


def wait_until(condition: Callable[[], Any], what: str) -> None:
    tick = threading.Event()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        tick.wait(0.02)


def is_running(pid: int) -> bool:
    """Alive and not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def service_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A service that writes continuously, with the store server's pid and socket."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        pid, socket = process.stdout.readline().split(maxsplit=1)
        yield process, int(pid), socket.strip()
    finally:
        process.kill()
        process.wait()


def acknowledged(process: subprocess.Popen[str]) -> int:
    """Number of further writes that a killed service acknowledged."""
    assert process.stdout is not None
    return len([line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")])


def numbers_in(client: redis.Redis) -> list[int]:
    raw: Any = client.lrange("numbers", 0, -1)
    return [int(number) for number in raw]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stops a child with its parent")
def test_kill_9_of_the_service_loses_no_acknowledged_write(tmp_path: Path) -> None:
    num_before = 0
    for _ in range(3):
        with service_process(tmp_path) as (process, server_pid, _socket):
            assert process.stdout is not None
            for _ in range(200):
                process.stdout.readline()
            assert is_running(server_pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            num_acknowledged = 200 + acknowledged(process)
            # The old server may still be running when the next one starts.
            with EmbeddedStore(tmp_path) as embedded:
                assert not is_running(server_pid)
                stored = numbers_in(embedded.client())[num_before:]
            # One write may have been stored before it was acknowledged.
            assert stored[:num_acknowledged] == list(range(num_acknowledged))
            assert len(stored) <= num_acknowledged + 1
            num_before += len(stored)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stops a child with its parent")
def test_kill_9_of_the_service_stops_the_server(tmp_path: Path) -> None:
    with service_process(tmp_path) as (process, server_pid, _socket):
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not is_running(server_pid), "the server is still running")
    assert not ServerFiles(tmp_path).server_is_locked()


def test_labels_survive_restarts(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        dog = add(LabelStore(embedded.client()), "dog")
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        assert store.get(dog.id) == dog and store.revision() == 1
        restart_server(embedded)
        assert store.get(dog.id) == dog
    with pytest.raises(StoreUnavailable):
        store.get(dog.id)


def test_a_killed_server_is_restarted(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        dog = add(store, "dog")
        for _ in range(3):
            server_pid = embedded.pid
            assert server_pid is not None
            os.kill(server_pid, signal.SIGKILL)
            wait_until(lambda: not is_running(server_pid), "the server is still running")  # noqa: B023
            wait_until(lambda: _can_read(store, dog), "the server was not restarted")
            wait_until(lambda: embedded.pid not in (None, server_pid), "the supervisor did not restart the server")  # noqa: B023
        assert add(store, "cat").revision == 2


def _can_read(store: LabelStore, label: Label) -> bool:
    try:
        return store.get(label.id) == label
    except StoreUnavailable:
        return False


def test_a_server_whose_socket_was_deleted_is_restarted(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        client = embedded.client()
        client.set("key", "value")
        server_pid = embedded.pid
        embedded.socket_path.unlink()
        wait_until(lambda: embedded.pid not in (None, server_pid), "the server was not restarted")
        assert client.get("key") == b"value"


def test_a_second_service_on_the_folder_is_rejected(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        server_pid = embedded.pid
        with pytest.raises(DataFolderInUse, match="Another Vidlex service") as caught:
            EmbeddedStore(tmp_path).start()
        assert str(os.getpid()) in caught.value.internal
        assert str(tmp_path) not in str(caught.value)
        script = (
            "import sys; from pathlib import Path; from vidlex.service.labels.embedded.server import EmbeddedStore\n"
            "try: EmbeddedStore(Path(sys.argv[1])).start()\nexcept Exception as e: print(type(e).__name__)"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert other.stdout == "DataFolderInUse\n"
        assert embedded.pid == server_pid and embedded.client().ping()
    with EmbeddedStore(tmp_path):
        pass


def launch_directly(folder: Path, parent_pid: int | None = None) -> subprocess.Popen[bytes]:
    """A server without a supervisor, as left by an earlier service."""
    files = ServerFiles(folder)
    files.create()
    files.write_config(files.choose_socket())
    command = [launch.__file__, str(parent_pid or os.getpid()), files.server_lock, server_binary(), files.config]
    return subprocess.Popen([sys.executable, "-I", "-S", *map(str, command)], cwd=files.folder, start_new_session=True)


def answering(folder: Path) -> redis.Redis:
    client = connect_socket(str(ServerFiles(folder).last_socket()))

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    wait_until(answers, "the server does not answer")
    return client


@pytest.mark.parametrize("state", ["healthy", "stopped", "without socket"])
def test_an_orphaned_server_is_stopped_at_the_next_start(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "stopped":
        monkeypatch.setattr("vidlex.service.labels.embedded.orphans._SOCKET_TIMEOUT_SECONDS", 0.2)
        monkeypatch.setattr("vidlex.service.labels.embedded.orphans._TERM_SECONDS", 0.5)
    orphan = launch_directly(tmp_path)
    try:
        client = answering(tmp_path)
        client.set("key", "value")
        if state == "stopped":
            orphan.send_signal(signal.SIGSTOP)  # reacts neither to its socket nor to SIGTERM
        if state == "without socket":
            socket = ServerFiles(tmp_path).last_socket()
            assert socket is not None
            socket.unlink()
        with EmbeddedStore(tmp_path) as embedded:
            assert orphan.wait(PATIENCE_SECONDS) is not None
            assert embedded.pid != orphan.pid
            assert embedded.client().get("key") == b"value"
    finally:
        orphan.kill()
        orphan.wait()


def test_a_second_server_on_the_folder_exits(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        before = embedded.pid
        files = ServerFiles(tmp_path)
        command = [launch.__file__, str(os.getpid()), files.server_lock, server_binary(), files.config]
        second = subprocess.run([sys.executable, "-I", "-S", *map(str, command)], check=False, timeout=PATIENCE_SECONDS)
        assert second.returncode == launch.EXIT_LOCKED
        assert embedded.pid == before and files.lock_owner_pid() == before


def test_only_a_server_in_this_folder_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that holds the lock is not a server."""
    monkeypatch.setattr("vidlex.service.labels.embedded.orphans._TERM_SECONDS", 0.2)
    monkeypatch.setattr("vidlex.service.labels.embedded.orphans._KILL_SECONDS", 0.2)
    files = ServerFiles(tmp_path)
    files.create()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\nf = open(sys.argv[1], 'a+')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
            "f.write(f'{os.getpid()}')\nf.flush()\nprint('locked', flush=True)\ntime.sleep(600)",
            str(files.server_lock),
        ],
        stdout=subprocess.PIPE,
        cwd=files.folder,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataFolderInUse, match="Another store server"):
            EmbeddedStore(tmp_path).start()
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
    with EmbeddedStore(tmp_path):
        pass


def test_a_launcher_without_its_parent_starts_no_server(tmp_path: Path) -> None:
    launcher = launch_directly(tmp_path, parent_pid=1)
    assert launcher.wait(PATIENCE_SECONDS) == launch.EXIT_ORPHAN


@pytest.mark.parametrize("name", ["with space", 'quo"te\\back', "ümlaut-犬", "x" * 120])
def test_folder_with_special_characters_or_a_long_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / name
    next_to_data = ServerFiles(folder).socket
    is_short = len(os.fsencode(next_to_data)) <= MAX_SOCKET_PATH_BYTES
    with EmbeddedStore(folder) as embedded:
        client = embedded.client()
        client.set("key", "value")
        socket = embedded.socket_path
        assert len(os.fsencode(socket)) <= 107
        assert (socket == next_to_data) == is_short
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert socket.stat().st_mode & 0o077 == 0
        restart_server(embedded)
        assert embedded.socket_path == socket and client.get("key") == b"value"
    assert not socket.exists()
    assert is_short or not socket.parent.exists()
    with EmbeddedStore(folder) as embedded:
        assert embedded.client().get("key") == b"value"


def test_the_server_uses_only_its_socket_and_syncs_every_write(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        config: Any = embedded.client().config_get("*")
        expected = {"port": "0", "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert {key: config[key] for key in expected} == expected


def test_a_damaged_log_is_reported_and_not_changed(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        for i in range(100):
            embedded.client().set(f"key {i}", i)
    (log,) = (tmp_path / "store" / "appendonlydir").glob("*.incr.aof")
    raw = bytearray(log.read_bytes())
    raw[100:140] = b"\0" * 40
    log.write_bytes(raw)
    embedded = EmbeddedStore(tmp_path)
    with pytest.raises(StoreUnavailable) as caught:
        embedded.start()
    assert "append only file" in caught.value.internal
    assert "append" not in str(caught.value)
    assert bytes(raw) == log.read_bytes()
    with pytest.raises(StoreUnavailable):
        LabelStore(embedded.client()).ping()


def test_a_truncated_last_transaction_is_discarded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        for name in ("dog", "cat"):
            add(store, name)
    (log,) = (tmp_path / "store" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-20])
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        assert [label.name for label in store.list().data] == ["dog"]
        assert store.revision() == 1 and store.find("cat") is None
    assert "left out a torn transaction" in caplog.text


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="data folder"):
        EmbeddedStore(tmp_path / "file" / "data").start()


def test_start_twice_and_stop_without_start(tmp_path: Path) -> None:
    embedded = EmbeddedStore(tmp_path)
    with pytest.raises(StoreUnavailable):
        embedded.client()
    embedded.start()
    with pytest.raises(RuntimeError, match="already"):
        embedded.start()
    embedded.stop()
    embedded.stop()
    assert embedded.pid is None
    EmbeddedStore(tmp_path / "other").stop()
