"""The migration from schema 1 to 2: complete, interrupted, concurrent, and during writes of a service."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import redis

from support.paths import ROOT
from support.processes import PATIENCE_SECONDS
from support.stores import FINGERPRINT, add, url_of, vector_of
from vidlex.migrations import m002_parents_and_prefixes
from vidlex.migrations.runner import LOCK_KEY, VERSION_KEY, find_migrations, migrate, pending, schema_version
from vidlex.service.labels.store.label_reader import SCHEMA_VERSION
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.namespaces import count_labels, list_namespaces
from vidlex.service.labels.store.records import LabelChanges
from vidlex.service.labels.store.vectors import encode_vector
from vidlex.service.labels.store.verify import verify_namespace

NEWER = [migration.name for migration in find_migrations()][1:]

# Each batch waits for a line, so that the process is killed between known batches on any machine.
RUN = """import sys, redis
from vidlex.migrations import m002_parents_and_prefixes as m002
from vidlex.migrations.runner import migrate
real = m002._write_batch
def step_by_step(*arguments):
    sys.stdin.readline()
    real(*arguments)
    print("done", flush=True)
m002._write_batch = step_by_step
migrate(redis.Redis.from_url(sys.argv[1]))"""
NUM_KILLS = 5


def write_schema_1(client: redis.Redis, num_labels: int, namespace: str = "default") -> None:
    """Write exactly what version 1 of the service wrote."""
    base = f"vidlex:{{{namespace}}}"
    pipe: Any = client.pipeline(transaction=False)
    for i in range(num_labels):
        label_id = f"lbl_{i:024d}"
        record = {
            "name": f"Label {i}",
            "aliases": [f"Other {i}"],
            "categories": ["thing"],
            "threshold": None,
            "metadata": {"ü": i},
            "created_at_ms": 1,
            "updated_at_ms": 2,
            "revision": 1 + i // 500,
        }
        pipe.hset(f"{base}:records", label_id, json.dumps(record, ensure_ascii=False, separators=(",", ":")))
        pipe.hset(f"{base}:names", mapping={f"label {i}": label_id, f"other {i}": label_id})
        pipe.zadd(f"{base}:order", {label_id: 0})
        pipe.zadd(f"{base}:category:thing", {label_id: 0})
        pipe.hset(f"{base}:vectors:{FINGERPRINT}", label_id, encode_vector(vector_of(str(i))))
    pipe.hset(f"{base}:generations", FINGERPRINT, "5")
    for revision in range(1, 2 + (num_labels - 1) // 500):
        ids = ",".join(f"lbl_{i:024d}" for i in range(500 * revision - 500, min(500 * revision, num_labels)))
        fields = {"kind": "put", "ids": ids, "fingerprint": "", "token": f"t{revision}", "previous": f"t{revision - 1}"}
        pipe.xadd(f"{base}:changes", fields, id=f"{revision}-0")
    pipe.set(VERSION_KEY, 1)
    pipe.execute()


def assert_migrated(client: redis.Redis, num_labels: int, namespace: str = "default") -> None:
    assert schema_version(client) == SCHEMA_VERSION
    assert verify_namespace(client, namespace) == []
    store = LabelStore(client, namespace)
    assert count_labels(client, namespace) == num_labels
    label = store.find("OTHER 3")
    assert label is not None and (label.name, label.parents, label.metadata) == ("Label 3", (), {"ü": 3})
    assert store.list(prefix="label 3", limit=1).data[0] == label
    child = store.update(label.id, LabelChanges(parents=("label 4",)))
    add(store, "new")
    assert store.list(parent="label 4").data == [child]
    assert verify_namespace(client, namespace) == []


def test_migrates_two_namespaces_once(client: redis.Redis) -> None:
    write_schema_1(client, 700)
    write_schema_1(client, 20, "other")
    before = client.xrange("vidlex:{default}:changes")
    counts = pending(client)
    assert list(counts) == NEWER
    assert counts["m002_parents_and_prefixes"] == {"namespaces": 2, "records": 720, "texts": 1440}
    assert schema_version(client) == 1  # a dry run writes nothing
    assert client.hget("vidlex:{default}:records", "lbl_" + "0" * 24).find(b"parents") == -1  # type: ignore[union-attr]
    assert migrate(client) == NEWER
    assert migrate(client) == [] and pending(client) == {}
    assert client.xrange("vidlex:{default}:changes") == before
    assert list_namespaces(client) == ["default", "other"]
    assert_migrated(client, 700)
    assert_migrated(client, 20, "other")


def test_a_killed_migration_is_continued(client: redis.Redis) -> None:
    num_labels, num_batches = 10_000, 60
    write_schema_1(client, num_labels)
    url = url_of(client)
    command = [sys.executable, "-c", RUN, url]
    draw = random.Random(2)
    for kill in range(1, NUM_KILLS + 1):
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        for _ in range(kill * num_batches // (NUM_KILLS + 1)):
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
        process.stdin.write(b"\n")  # one more batch, which runs when the process is killed
        process.stdin.flush()
        time.sleep(draw.uniform(0.0, 0.01))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert schema_version(client) == 1
        assert num_done(client) < 3 * num_labels
        assert client.pttl(LOCK_KEY) > 0  # type: ignore[operator]
        client.pexpire(LOCK_KEY, 1)  # the killed process's lock expires
    assert num_done(client) > num_labels
    subprocess.run([sys.executable, "-m", "vidlex.migrations", url], cwd=ROOT, check=True)
    assert m002_parents_and_prefixes.plan(client) == {"namespaces": 1, "records": 0, "texts": 0}
    assert_migrated(client, num_labels)
    assert migrate(client) == []


def num_done(client: redis.Redis) -> int:
    """Migrated ones of 10,000 records and 20,000 names."""
    remaining = m002_parents_and_prefixes.plan(client)
    return 30_000 - remaining["records"] - remaining["texts"]


def test_two_concurrent_processes_migrate_once(client: redis.Redis) -> None:
    write_schema_1(client, 3000)
    command = [sys.executable, "-m", "vidlex.migrations", url_of(client)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0]) for process in both]
    assert sorted(len(answer["applied"]) for answer in answers) == [0, len(NEWER)]
    assert {answer["schema"] for answer in answers} == {SCHEMA_VERSION}
    assert_migrated(client, 3000)


def test_concurrent_writes_of_a_service_are_not_overwritten(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_schema_1(client, 10)
    real = m002_parents_and_prefixes._records_with_parents
    base = "vidlex:{default}"

    def with_concurrent_write(pipe: Any, at: str, ids: list[bytes]) -> dict[bytes, str]:
        found = real(pipe, at, ids)
        if not client.exists("done"):
            client.set("done", 1)
            raw: Any = client.hget(f"{base}:records", "lbl_" + "0" * 24)
            client.hset(f"{base}:records", "lbl_" + "0" * 24, json.dumps(json.loads(raw) | {"threshold": 0.25}))
            client.xadd(f"{base}:changes", {"kind": "put"}, id="2-0")
        return found

    monkeypatch.setattr(m002_parents_and_prefixes, "_records_with_parents", with_concurrent_write)
    m002_parents_and_prefixes.apply(client)
    assert LabelStore(client).get("lbl_" + "0" * 24).threshold == 0.25


def test_dry_run_on_the_command_line(client: redis.Redis) -> None:
    write_schema_1(client, 10)
    url = url_of(client)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    environment = inherited | {"VIDLEX_REDIS_URL": url}
    for command in (
        [sys.executable, "-m", "vidlex.migrations", "--dry-run", url],
        [sys.executable, "-m", "vidlex.service.cli", "migrate", "--dry-run", "--json"],
    ):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        printed = json.loads(done.stdout)
        assert (list(printed["pending"]), printed["schema"]) == (NEWER, 1)
        assert printed["pending"]["m002_parents_and_prefixes"] == {"namespaces": 1, "records": 10, "texts": 20}
