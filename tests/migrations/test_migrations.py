"""The migration runner, with a real server."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
import threading
from typing import Any

import pytest
import redis

from support.paths import ROOT
from support.processes import until
from support.stores import add, url_of
from vidlex.migrations import runner
from vidlex.migrations.runner import Migration, MigrationError, MigrationLocked, SchemaTooNew, find_migrations, migrate
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.label_reader import SCHEMA_VERSION
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.namespaces import count_labels
from vidlex.service.labels.store.redis_keys import SCHEMA_VERSION_KEY, parse_key

NAMES = ["m001_initial", "m002_parents_and_prefixes", "m003_record_checksums", "m004_namespace_bytes"]


def nothing(_: Any) -> None:
    pass


def test_migrates_an_empty_store_once(client: redis.Redis) -> None:
    assert migrate(client) == NAMES
    assert migrate(client) == []
    assert runner.schema_version(client) == len(NAMES)
    history: Any = client.hgetall(runner.HISTORY_KEY)
    assert json.loads(history[b"1"])["name"] == "m001_initial"
    assert not client.exists(runner.LOCK_KEY)


def test_code_and_migrations_have_the_same_schema(client: redis.Redis) -> None:
    assert runner.VERSION_KEY == SCHEMA_VERSION_KEY
    assert len(find_migrations()) == SCHEMA_VERSION
    store = LabelStore(client)
    with pytest.raises(StoreUnavailable) as caught:
        store.check_schema()
    assert "run the migrations" in caught.value.internal
    migrate(client)
    store.check_schema()
    add(store, "dog", categories=("pet",))
    add(store, "hound", parents=("dog",))
    # The migrations' docstrings list every kind of key that the code writes.
    kinds = {parsed.kind for key in client.scan_iter() if (parsed := parse_key(key)) is not None}
    plain = {"changes", "names", "records", "order", "generations", "bytes", "texts"}
    assert kinds == plain | {"category", "vectors", "children"}
    modules = (importlib.import_module(f"vidlex.migrations.{name}") for name in NAMES)
    texts = "".join(str(module.__doc__) for module in modules)
    assert all(f":{kind}" in texts for kind in kinds)
    assert migrate(client) == []
    assert count_labels(client) == 2


def test_rejects_a_newer_schema(client: redis.Redis) -> None:
    client.set(runner.VERSION_KEY, len(NAMES) + 1)
    with pytest.raises(SchemaTooNew, match="upgrade"):
        migrate(client)
    with pytest.raises(StoreUnavailable):
        LabelStore(client).check_schema()
    assert client.get(runner.VERSION_KEY) == str(len(NAMES) + 1).encode()


def test_rejects_data_without_a_schema(client: redis.Redis) -> None:
    client.hset("vidlex:{default}:names", "dog", "1")
    with pytest.raises(MigrationError, match="no schema number"):
        migrate(client)
    assert runner.schema_version(client) == 0


def test_a_failed_migration_can_be_repeated(client: redis.Redis) -> None:
    calls: list[int] = []

    def fails_once(_: Any) -> None:
        calls.append(2)
        if len(calls) == 1:
            raise KeyError("broken")

    steps = (Migration(1, "m001_a", nothing), Migration(2, "m002_b", fails_once), Migration(3, "m003_c", nothing))
    with pytest.raises(MigrationError, match="m002_b failed"):
        migrate(client, steps)
    assert runner.schema_version(client) == 1
    assert migrate(client, steps) == ["m002_b", "m003_c"]
    assert calls == [2, 2]


def test_concurrent_runs_apply_each_migration_once(client: redis.Redis) -> None:
    applied: list[str] = []
    barrier = threading.Barrier(8)

    def step(_: Any) -> None:
        applied.append("a")

    def run() -> None:
        barrier.wait()
        migrate(client, (Migration(1, "m001_a", step),))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied == ["a"]


def test_waiting_for_the_lock_times_out(client: redis.Redis) -> None:
    client.set(runner.LOCK_KEY, "another process")
    with pytest.raises(MigrationLocked, match="another process"):
        migrate(client, lock_timeout_seconds=0.0)
    assert client.get(runner.LOCK_KEY) == b"another process"


def test_nothing_is_recorded_after_the_lock_was_lost(client: redis.Redis) -> None:
    def loses_lock(c: Any) -> None:
        c.set(runner.LOCK_KEY, "another process")

    with pytest.raises(MigrationLocked, match="took the lock"):
        migrate(client, (Migration(1, "m001_a", loses_lock),))
    assert runner.schema_version(client) == 0
    assert client.get(runner.LOCK_KEY) == b"another process"


def test_a_long_migration_renews_its_lock(client: redis.Redis) -> None:
    remaining: list[int] = []

    def slow(c: Any) -> None:
        def renewed_enough() -> bool:
            remaining.append(c.pttl(runner.LOCK_KEY))
            return sum(later > earlier for earlier, later in itertools.pairwise(remaining)) >= 4

        until(renewed_enough)

    assert migrate(client, (Migration(1, "m001_a", slow),), lock_seconds=3.0) == ["m001_a"]
    assert all(ms > 0 for ms in remaining)


def test_command_line(client: redis.Redis) -> None:
    url = url_of(client)
    command = [sys.executable, "-m", "vidlex.migrations", url]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(first.stdout) == {"applied": NAMES, "schema": len(NAMES)}
    client.set(runner.VERSION_KEY, 9)
    second = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert second.returncode == 1 and "upgrade" in json.loads(second.stdout)["error"]
