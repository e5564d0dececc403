"""The embedded store as real processes: kill -9 of the service and of the server, locks, leftovers, paths."""

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
from support.stores import FINGERPRINT, vector_of
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded import launch
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.embedded.server_files import DataFolderInUse, ServerFiles, server_binary
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label, NewLabel

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
    print(number, flush=True)  # only now it counts as acknowledged
    number += 1
"""


def wait_until(condition: Callable[[], Any], what: str) -> None:
    tick = threading.Event()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        tick.wait(0.02)


def is_running(pid: int) -> bool:
    """Alive, and not merely a dead child that nobody has asked for yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def service_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A service that writes without end; yields it with the store server's pid and socket."""
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
    """Number of writes that a killed service had confirmed."""
    assert process.stdout is not None
    return len([line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")])


def numbers_in(client: redis.Redis) -> list[int]:
    raw: Any = client.lrange("numbers", 0, -1)
    return [int(number) for number in raw]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_kill_9_of_the_service_loses_nothing_and_leaves_no_server(tmp_path: Path) -> None:
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
            # At once, while the server may still be on its way out: the next start has to cope with that.
            with EmbeddedStore(tmp_path) as embedded:
                assert not is_running(server_pid)
                kept = numbers_in(embedded.client())[num_before:]
            # One write may have been stored without its confirmation having been printed.
            assert kept[:num_acknowledged] == list(range(num_acknowledged))
            assert len(kept) <= num_acknowledged + 1
            num_before += len(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_no_orphan_after_kill_9(tmp_path: Path) -> None:
    with service_process(tmp_path) as (process, server_pid, _socket):
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not is_running(server_pid), "the server outlives its service")
    assert not ServerFiles(tmp_path).server_is_locked()


def test_labels_survive_restarts(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        dog = LabelStore(embedded.client()).add(NewLabel("dog"), vector_of("dog"), FINGERPRINT)
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        assert store.get(dog.id) == dog and store.revision() == 1
        embedded.restart()
        assert store.get(dog.id) == dog
    with pytest.raises(StoreUnavailable):
        store.get(dog.id)


def test_a_killed_server_comes_back_under_the_running_service(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        dog = store.add(NewLabel("dog"), vector_of("dog"), FINGERPRINT)
        for _ in range(3):
            server_pid = embedded.pid
            assert server_pid is not None
            os.kill(server_pid, signal.SIGKILL)
            wait_until(lambda: not is_running(server_pid), "kill -9 did not kill")  # noqa: B023
            wait_until(lambda: _is_there(store, dog), "it does not come back")
            wait_until(lambda: embedded.pid not in (None, server_pid), "the supervisor did not notice")  # noqa: B023
        assert store.add(NewLabel("cat"), vector_of("cat"), FINGERPRINT).revision == 2


def _is_there(store: LabelStore, label: Label) -> bool:
    try:
        return store.get(label.id) == label
    except StoreUnavailable:
        return False


def test_a_deleted_socket_is_noticed(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        client = embedded.client()
        client.set("key", "value")
        server_pid = embedded.pid
        embedded.socket_path.unlink()
        wait_until(lambda: embedded.pid not in (None, server_pid), "the server was not started again")
        assert client.get("key") == b"value"


def test_a_second_service_gets_a_clear_error_and_disturbs_nothing(tmp_path: Path) -> None:
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
    """A server as an earlier service has left it behind: nobody supervises it."""
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
def test_a_leftover_server_is_ended_before_the_next_start(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "stopped":
        monkeypatch.setattr("vidlex.service.labels.embedded.orphans._ASK_SECONDS", 0.2)
        monkeypatch.setattr("vidlex.service.labels.embedded.orphans._POLITE_SECONDS", 0.5)
    leftover = launch_directly(tmp_path)
    try:
        client = answering(tmp_path)
        client.set("key", "value")
        if state == "stopped":
            leftover.send_signal(signal.SIGSTOP)  # hears neither its socket nor SIGTERM
        if state == "without socket":
            (tmp_path / "store" / "valkey.sock").unlink()
        with EmbeddedStore(tmp_path) as embedded:
            assert leftover.wait(PATIENCE_SECONDS) is not None
            assert embedded.pid != leftover.pid
            assert embedded.client().get("key") == b"value"
    finally:
        leftover.kill()
        leftover.wait()


def test_two_servers_on_one_folder_are_impossible(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        before = embedded.pid
        files = ServerFiles(tmp_path)
        command = [launch.__file__, str(os.getpid()), files.server_lock, server_binary(), files.config]
        second = subprocess.run([sys.executable, "-I", "-S", *map(str, command)], check=False, timeout=PATIENCE_SECONDS)
        assert second.returncode == launch.EXIT_LOCKED
        assert embedded.pid == before and files.locked_by() == before


def test_only_a_server_of_this_folder_is_ever_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held by something that is no server, and names an innocent process."""
    monkeypatch.setattr("vidlex.service.labels.embedded.orphans._POLITE_SECONDS", 0.2)
    monkeypatch.setattr("vidlex.service.labels.embedded.orphans._FORCED_SECONDS", 0.2)
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


def test_an_orphaned_launcher_starts_no_server(tmp_path: Path) -> None:
    launcher = launch_directly(tmp_path, parent_pid=1)
    assert launcher.wait(PATIENCE_SECONDS) == launch.EXIT_ORPHAN


@pytest.mark.parametrize("name", ["with space", 'quo"te\\back', "ümlaut-犬", "x" * 120])
def test_strange_and_long_folders(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / name
    with EmbeddedStore(folder) as embedded:
        client = embedded.client()
        client.set("key", "value")
        socket = embedded.socket_path
        assert len(os.fsencode(socket)) <= 107
        assert (socket.parent == folder / "store") == (len(os.fsencode(folder)) < 80)
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert socket.stat().st_mode & 0o077 == 0
        embedded.restart()
        assert embedded.socket_path == socket and client.get("key") == b"value"
    assert not socket.exists()
    assert socket.parent == folder / "store" or not socket.parent.exists()
    with EmbeddedStore(folder) as embedded:
        assert embedded.client().get("key") == b"value"


def test_the_server_listens_on_its_socket_only_and_syncs_every_write(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        config: Any = embedded.client().config_get("*")
        wanted = {"port": "0", "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert {key: config[key] for key in wanted} == wanted


def test_a_log_that_cannot_be_read_back_is_an_error_with_the_reason(tmp_path: Path) -> None:
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
    assert bytes(raw) == log.read_bytes(), "the damaged log must be left as it is"
    with pytest.raises(StoreUnavailable):
        embedded.restart()


def test_a_write_cut_off_by_a_power_failure_does_not_block_the_start(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        for name in ("dog", "cat"):
            store.add(NewLabel(name), vector_of(name), FINGERPRINT)
    (log,) = (tmp_path / "store" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-20])  # the last transaction lost its end: it must vanish as a whole
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        assert [label.name for label in store.list().data] == ["dog"]
        assert store.revision() == 1 and store.find("cat") is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="data folder"):
        EmbeddedStore(tmp_path / "file" / "data").start()


def test_stop_before_start_and_twice(tmp_path: Path) -> None:
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
