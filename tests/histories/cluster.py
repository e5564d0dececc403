"""Two replicas of the service and a store, with the faults that a history meets.

Where the system lets us, each replica reaches the store by a network of its own, which can be cut, and the store's
folder is a small file system, which can be filled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis

from support.processes import free_port, until
from support.replicas import Replica
from vidlex.service.labels.embedded.server_files import server_binary

HAS_NETWORKS = os.geteuid() == 0 and shutil.which("ip") is not None
STORE_MEGABYTES = 24


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Cluster:
    """Call ``close`` at the end, however far ``start`` came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "store"
        self._folder.mkdir()
        self._namespace = f"vidlex-{os.getpid()}"
        self._base = f"10.{os.getpid() % 200 + 20}"
        self._links = [f"vx{os.getpid() % 100_000}{side}" for side in "ab"]
        self._ballast = self._folder / "ballast"
        self._data = self._folder / "0"
        self._store: subprocess.Popen[bytes] | None = None
        hosts = [f"{self._base}.{number}.2" for number in range(2)] if HAS_NETWORKS else ["127.0.0.1"] * 2
        self._port = 6390 if HAS_NETWORKS else free_port(1)
        self._host = hosts[0]
        self.replicas = [
            Replica(folder / name, f"redis://{host}:{self._port}/0") for name, host in zip("ab", hosts, strict=True)
        ]

    def start(self) -> None:
        if HAS_NETWORKS:
            _run("mount", "-t", "tmpfs", "-o", f"size={STORE_MEGABYTES}m", "vidlex-test", str(self._folder))
            _run("ip", "netns", "add", self._namespace)
            for number, link in enumerate(self._links):
                _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth", "netns", self._namespace)
                inside = ("ip", "-n", self._namespace)
                _run(*inside, "link", "set", "eth", "name", f"eth{number}")
                _run(*inside, "addr", "add", f"{self._base}.{number}.2/24", "dev", f"eth{number}")
                _run(*inside, "link", "set", f"eth{number}", "up")
                _run("ip", "addr", "add", f"{self._base}.{number}.1/24", "dev", link)
                _run("ip", "link", "set", link, "up")
            _run("ip", "-n", self._namespace, "link", "set", "lo", "up")
        self.start_store()
        for replica in self.replicas:
            replica.start()
        self.wait()

    def wait(self) -> None:
        for replica in self.replicas:
            replica.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(self._host, self._port)

    # --- faults and their ends

    def start_store(self) -> None:
        """Every write is on the disk before it is acknowledged."""
        self._store = self._start_server(self._data, self._port)
        until(lambda: _answers(self.client()))

    def _start_server(self, folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        words = ["ip", "netns", "exec", self._namespace] if HAS_NETWORKS else []
        words += [str(server_binary()), "--port", str(port), "--dir", str(folder)]
        words += ["--bind", "*" if HAS_NETWORKS else "127.0.0.1", "--protected-mode", "no"]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *options]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def kill_store(self) -> None:
        assert self._store is not None
        self._store.kill()
        self._store.wait()

    @contextlib.contextmanager
    def paused_store(self) -> Iterator[None]:
        assert self._store is not None
        with _paused(self._store.pid):
            yield

    @contextlib.contextmanager
    def paused_replica(self, number: int) -> Iterator[None]:
        process = self.replicas[number]._process
        assert process is not None
        with _paused(process.pid):
            yield

    @contextlib.contextmanager
    def partitioned(self, number: int) -> Iterator[None]:
        """One replica and the store do not reach each other; packets are lost without an answer."""
        link = self._links[number]
        _run("ip", "link", "set", link, "down")
        try:
            yield
        finally:
            _run("ip", "link", "set", link, "up")

    def fill_disk(self) -> None:
        """Until the store has ended, as it does when it cannot write: it acknowledges nothing that is not written."""
        assert self._store is not None
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        self._store.wait(120)

    def free_disk(self) -> None:
        self._ballast.unlink()

    def fail_over(self) -> None:
        """A copy of the store takes its place: the store stops writing, the copy catches up and gets its port."""
        data, port = self._folder / str(int(self._data.name) + 1), self._port + 1
        copy = self._start_server(data, port, "--replicaof", "127.0.0.1", str(self._port))
        follower, leader = redis.Redis(self._host, port), self.client()

        def is_level() -> bool:
            facts = follower.info("replication")
            offset = leader.info("replication")["master_repl_offset"]
            return facts.get("master_link_status") == "up" and facts["slave_repl_offset"] == offset

        try:
            until(lambda: _answers(follower) and follower.info("replication").get("master_link_status") == "up")
            leader.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
            until(is_level)
        finally:
            self.kill_store()
            self._store, self._data = copy, data
        follower.replicaof("NO", "ONE")
        follower.config_set("port", self._port)
        until(lambda: _answers(self.client()))

    def close(self) -> None:
        for replica in self.replicas:
            replica.kill()
        if self._store is not None:
            self._store.kill()
            self._store.wait()
        if HAS_NETWORKS:
            for words in (["ip", "netns", "delete", self._namespace], ["umount", str(self._folder)]):
                subprocess.run(words, check=False, capture_output=True)


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


@contextlib.contextmanager
def _paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
