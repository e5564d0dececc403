"""The label store on a cluster, with commands of Redis 7.0 only, and next to writers of short steps."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from support.backups import backup_of, content_of
from support.paths import ROOT
from support.processes import PATIENCE_SECONDS, free_port, until
from support.stores import FINGERPRINT, add, vector_of
from vidlex.migrations.runner import migrate
from vidlex.service.backup.restore import restore
from vidlex.service.labels.embedded.server_files import server_binary
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.answers import CreatedLabel
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.label_store import STEP_LABELS, LabelStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.labels.store.verify import verify_namespace


def use_everything(client: redis.Redis) -> None:
    """Every kind of step and read, in two namespaces."""
    for namespace in ("default", "other"):
        store = LabelStore(client, namespace)
        animal = add(store, "animal", categories=("thing",))
        dog = add(store, "dog", aliases=("hound",), parents=("animal",))
        store.update(dog.id, LabelChanges(name="cat"), vector=vector_of("cat"), fingerprint=FINGERPRINT)
        store.put_vectors("encoder-2", {dog.id: np.ones(2, np.float32)})
        with store.idempotency.hold("key", {}) as request:
            (cow,) = store.add_many([(NewLabel("cow"), vector_of("cow"))], FINGERPRINT, idempotent_request=request)
            assert isinstance(cow, Label)
            store.idempotency.save_answer(request, [CreatedLabel.of(cow)])
        assert len(store.list(prefix="c").data) == 2 and len(store.list(parent="animal", q="c").data) == 1
        index = LabelIndex(5, FINGERPRINT)
        IndexSync(store, index).load()
        assert len(index) == 3 and len(store.changes(0)) == 5
        store.remove(animal.id)
        store.drop_generation("encoder-2")
        assert verify_namespace(client, namespace) == []
    assert list_namespaces(client) == ["default", "other"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[redis.Redis]:
    """A cluster of one node with all slots, which rejects commands and transactions on several slots."""
    port = free_port(10_000)  # and the bus of the cluster
    command = [str(server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    process = subprocess.Popen([*command, "--cluster-enabled", "yes"], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    try:
        until(lambda: _answers(client))
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: b"cluster_state:ok" in _raw(client, "CLUSTER", "INFO"))
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _raw(client: redis.Redis, *words: str) -> bytes:
    answer: Any = client.execute_command(*words)
    return answer if isinstance(answer, bytes) else repr(answer).encode()


def test_every_step_uses_a_single_slot(cluster: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match="same slot"):  # this server checks slots
        cluster.mset({"a": 1, "b": 2})
    assert migrate(cluster)
    use_everything(cluster)
    before = content_of(cluster)
    restore(cluster, backup_of(cluster)[0], force=True)
    assert content_of(cluster) == before


def test_no_command_is_newer_than_redis_7_0(client: redis.Redis) -> None:
    client.config_resetstat()
    migrate(client)
    use_everything(client)
    restore(client, backup_of(client)[0], force=True)
    used = [name.removeprefix("cmdstat_").partition("|")[0] for name in client.info("commandstats")]
    documents: Any = client.execute_command("COMMAND DOCS", *used)
    pairs = documents.items() if isinstance(documents, dict) else zip(documents[::2], documents[1::2], strict=True)
    since = {}
    for name, fields in pairs:
        table = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        since[name.decode()] = tuple(int(part) for part in table[b"since"].decode().split("."))
    assert {"xadd", "zrange", "hset"} <= set(since)
    assert {name: version for name, version in since.items() if version >= (7, 1)} == {}


KEY_FILES = (
    "service/access/key_store.py",  # API keys belong to no namespace
    "service/feedback/keys.py",
    "service/jobs/keys.py",
    "service/labels/store/redis_keys.py",
    "service/videos/keys.py",
    "service/webhooks/keys.py",
)


def test_keys_of_each_prefix_are_built_in_one_file_only() -> None:
    pattern = re.compile(r"vidlex[a-z-]*:\{")
    files = [path.relative_to(ROOT) for path in (ROOT / "service").rglob("*.py") if pattern.search(path.read_text())]
    assert sorted(str(path) for path in files) == list(KEY_FILES)
    labels = [path for path in (ROOT / "service").rglob("*.py") if re.search(r"vidlex:\{", path.read_text())]
    assert [path.name for path in labels] == ["redis_keys.py"]


def test_a_long_step_succeeds_despite_concurrent_short_steps(client: redis.Redis) -> None:
    """The long step takes the priority lock."""
    path = client.get_connection_kwargs()["path"]
    stop = threading.Event()
    counts = [0] * 4

    def write(number: int) -> None:
        store = LabelStore(connect_socket(path), deadline_seconds=PATIENCE_SECONDS)
        while not stop.is_set():
            add(store, f"writer {number} label {counts[number]}")
            counts[number] += 1

    def have_all_written_since(before: list[int]) -> bool:
        return all(now > then for now, then in zip(counts, before, strict=True)) or any(w.done() for w in writers)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        try:
            bulk = LabelStore(connect_socket(path), deadline_seconds=PATIENCE_SECONDS)
            for part in range(3):
                before = counts.copy()
                until(lambda before=before: have_all_written_since(before))  # type: ignore[misc]
                items = [(NewLabel(f"bulk {part} {i}"), vector_of("x")) for i in range(STEP_LABELS)]
                assert not any(isinstance(result, Exception) for result in bulk.add_many(items, FINGERPRINT))
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    assert verify_namespace(client) == []
