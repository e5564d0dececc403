"""What is left in the store of a namespace without labels: the stream for a day, then nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from support.processes import until
from support.serving import add as post
from support.serving import clear, serving
from support.stores import DIM, FINGERPRINT, add, all_vectors, vector_of
from vidlex.service.labels.embedded.server_files import ServerFiles
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store import transaction
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.records import LabelChanges
from vidlex.service.labels.store.verify import verify_namespace

CHANGES = "vidlex:{default}:changes"
CALIBRATION = Calibration("c", "videos", 17, 1, False, {})


def use(store: LabelStore) -> None:
    animal = add(store, "animal", categories=("thing",))
    dog = add(store, "dog", aliases=("hound",), parents=("animal",), metadata={"x": 1})
    store.put_vectors("encoder-2", {dog.id: vector_of("dog", 3)})
    store.update(dog.id, LabelChanges(name="cat"), vector=vector_of("cat"), fingerprint=FINGERPRINT)
    store.remove(animal.id)
    store.remove(dog.id)


def test_only_the_stream_is_left_and_it_expires(store: LabelStore, client: redis.Redis) -> None:
    use(store)
    assert client.keys("*") == [CHANGES.encode()]
    assert 0 < client.ttl(CHANGES) <= transaction.FORGET_SECONDS
    assert store.revision() == 6  # so that `min_revision` of the last removal is reached
    assert verify_namespace(client) == []


def test_a_label_makes_it_stay(store: LabelStore, client: redis.Redis) -> None:
    use(store)
    label = add(store, "bird")
    assert label.revision == 7 and client.ttl(CHANGES) == -1
    assert list(all_vectors(store)) == [label.id]
    store.remove(label.id)
    assert client.ttl(CHANGES) > 0


def test_a_calibration_makes_it_stay(store: LabelStore, client: redis.Redis) -> None:
    """It belongs to the namespace, and would be missed when a vocabulary is replaced."""
    add(store, "dog")
    store.put_calibration(FINGERPRINT, CALIBRATION)
    store.remove(store.list().data[0].id)
    assert {key.decode().rpartition(":")[2] for key in client.keys("*")} == {"changes", "calibrations"}
    assert client.ttl(CHANGES) == -1
    store.put_calibration(FINGERPRINT, None)
    assert client.keys("*") == [CHANGES.encode()] and client.ttl(CHANGES) > 0
    store.put_calibration(FINGERPRINT, CALIBRATION)
    assert client.ttl(CHANGES) == -1
    store.drop_generation(FINGERPRINT)
    assert client.keys("*") == [CHANGES.encode()] and client.ttl(CHANGES) > 0


def test_replicas_follow_a_namespace_that_was_forgotten(
    store: LabelStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its revisions begin again, which is another history."""
    monkeypatch.setattr(transaction, "FORGET_SECONDS", 1)
    index = LabelIndex(DIM, FINGERPRINT)
    sync = IndexSync(store, index)
    sync.load()
    sync.start()
    try:
        use(store)
        until(lambda: sync.revision == 6)
        until(lambda: not client.exists(CHANGES))
        assert list_namespaces(client) == [] and client.dbsize() == 0
        until(lambda: sync.revision == 0)
        for number in range(8):
            label = add(store, f"label {number}")
        assert label.revision == 8
        assert sync.wait_for_revision(8, 60) and len(index) == 8
    finally:
        sync.close()


def test_over_http(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        store = connect_socket(str(ServerFiles(tmp_path).last_socket()))
        before = {key for key in store.keys("*") if b"{default}" not in key}
        client.headers["X-Vidlex-Namespace"] = "short-lived"
        post(client, "red", "blue", categories=["x"])
        client.post("/labels", json={"name": "green"}, headers={"Idempotency-Key": "k"})
        client.post("/labels", json={"name": "green"}, headers={"Idempotency-Key": "refused"})
        clear(client)
        left = {key for key in store.keys("*") if b"{default}" not in key} - before
        (request,) = [key for key in left if b":request:" in key]
        assert left == {b"vidlex:{short-lived}:changes", b"vidlex:{short-lived}:requests", request}
        assert all(store.ttl(key) > 0 for key in left)


def test_a_namespace_that_is_forgotten_during_a_write(
    store: LabelStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream expires between the reads and the writes of a step: the step starts again, with revision 1."""
    use(store)
    client.pexpire(CHANGES, 300)
    real = store._room
    revisions: list[int] = []

    def wait(*args: Any) -> Any:
        revisions.append(store.revision())
        until(lambda: not client.exists(CHANGES))
        return real(*args)

    monkeypatch.setattr(store, "_room", wait)
    label = add(store, "bird")
    assert revisions == [6, 0]
    assert label.revision == store.revision() == 1 and client.ttl(CHANGES) == -1
    assert verify_namespace(client) == []
