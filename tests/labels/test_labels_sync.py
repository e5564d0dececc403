"""The index follows the store: additions, renames, removals, gaps, another history, an outage."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from support.processes import PATIENCE_SECONDS, until
from support.replicas import StoreProcess
from support.stores import DIM, FINGERPRINT, add, running_store, vector_of
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.index import index_sync as sync_module
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import IndexMismatch, LabelIndex
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with running_store(tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture
def store(server: redis.Redis) -> LabelStore:
    server.flushall()
    return LabelStore(server)


@pytest.fixture(autouse=True)
def quick_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "BLOCK_MS", 50)


class Replica:
    """An index that follows the store, as in one service process."""

    def __init__(self, store: LabelStore, fingerprint: str = FINGERPRINT, dim: int = DIM, **options: Any) -> None:
        self.store = store
        self.index = LabelIndex(dim, fingerprint)
        self.sync = IndexSync(store, self.index, **options)

    def __enter__(self) -> Replica:
        self.sync.load()
        self.sync.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sync.close()

    def content(self) -> dict[str, list[float]]:
        """Label name to its vector, read through searches along the axes."""
        axes = np.eye(self.index.dim, dtype=np.float32)
        matches = self.index.search(axes)
        return {label.name: matches.similarity[:, i].tolist() for i, label in enumerate(matches.labels)}

    def await_store(self) -> None:
        assert self.sync.wait_for_revision(self.store.revision(), PATIENCE_SECONDS)


def expected(*names: str) -> dict[str, list[float]]:
    return {name: vector_of(name).tolist() for name in names}


def test_load_then_follow(store: LabelStore) -> None:
    dog = add(store, "dog")
    with Replica(store) as replica:
        assert replica.content() == expected("dog") and replica.sync.is_healthy
        assert replica.index.revision == replica.sync.revision == 1
        add(store, "cat")
        replica.await_store()
        assert replica.content() == expected("dog", "cat")
        store.update(dog.id, LabelChanges(name="wolf"), vector=vector_of("wolf"), fingerprint=FINGERPRINT)
        replica.await_store()
        assert replica.content() == expected("wolf", "cat")
        store.remove(dog.id)
        replica.await_store()
        assert replica.content() == expected("cat")
        assert replica.index.search(np.eye(DIM, dtype=np.float32)).revision == store.revision() == 4


def test_a_write_is_visible_after_waiting_for_its_revision(store: LabelStore) -> None:
    with Replica(store) as replica:
        for i in range(50):
            label = add(store, f"label {i}")
            assert replica.sync.wait_for_revision(label.revision, PATIENCE_SECONDS)
            assert IndexedLabel.of(label) in replica.index.search(vector_of("x")[None]).labels


def test_two_replicas_converge_while_both_write(store: LabelStore, server: redis.Redis) -> None:
    other_store = LabelStore(server)
    with Replica(store) as one, Replica(other_store) as other:

        def write(target: LabelStore, prefix: str) -> None:
            for i in range(40):
                label = add(target, f"{prefix} {i}")
                if i % 3 == 0:
                    target.remove(label.id)
                elif i % 3 == 1:
                    target.update(label.id, LabelChanges(threshold=0.5))

        threads = [threading.Thread(target=write, args=pair) for pair in ((store, "a"), (other_store, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.await_store()
        other.await_store()
        names = [f"{prefix} {i}" for prefix in "ab" for i in range(40) if i % 3]
        assert one.content() == other.content() == expected(*names)
        stored = [IndexedLabel.of(label) for label in store.list(limit=1000).data]
        assert sorted(one.index.search(vector_of("x")[None]).labels, key=lambda label: label.id) == stored


def test_bulk_changes_larger_than_one_fetch(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "_FETCH_LABELS", 7)
    with Replica(store) as replica:
        names = [f"label {i}" for i in range(30)]
        store.add_many([(NewLabel(name), vector_of(name)) for name in names], FINGERPRINT)
        replica.await_store()
        assert replica.content() == expected(*names)


def num_reloads(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("reloading all labels: ")


def test_reloads_if_the_stream_was_trimmed_too_far(server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    server.flushall()
    store = LabelStore(server, max_changes=3)
    replica = Replica(store)
    first = add(store, "first")
    replica.sync.load()
    store.remove(first.id)
    names = [f"label {i}" for i in range(10)]
    for name in names:
        add(store, name)
    replica.sync.start()
    try:
        replica.await_store()
        assert replica.content() == expected(*names)
        assert "revision 10 does not follow 1" in caplog.text
    finally:
        replica.sync.close()


def test_reloads_if_the_store_was_emptied_or_restored(
    store: LabelStore, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("dog", "cat", "cow"):
        add(store, name)
    with Replica(store) as replica:
        # Another history of the same length: only the tokens differ.
        with server.pipeline(transaction=True) as pipe:
            pipe.flushall()
            pipe.execute()
        for name in ("ant", "bee", "fly"):
            add(store, name)
        until(lambda: replica.content() == expected("ant", "bee", "fly"))
        assert num_reloads(caplog) >= 1
        # A shorter history without further changes.
        server.flushall()
        until(lambda: replica.content() == {})
        # A longer history.
        replica.sync.close()
    with Replica(store) as replica:
        add(store, "x")
        replica.await_store()
        before = num_reloads(caplog)
        replica.sync.close()
        server.flushall()
        for name in ("ant", "bee", "fly"):
            add(store, name)
        again = IndexSync(store, replica.index)
        again._head = replica.sync._head  # where the old history ended
        again.start()
        until(lambda: replica.content() == expected("ant", "bee", "fly"))
        again.close()
        assert num_reloads(caplog) == before + 1


def test_labels_without_vector_are_reported_and_indexed_once_encoded(store: LabelStore) -> None:
    reported: list[str] = []

    def encode(labels: Sequence[Label]) -> None:
        reported.extend(label.name for label in labels)
        vectors = {label.id: vector_of("new " + label.name, 3) for label in labels}
        store.put_vectors("encoder-2", vectors, names={label.id: label.name for label in labels})

    add(store, "dog")
    with Replica(store, "encoder-2", 3, on_missing=encode) as replica, Replica(store) as old_replica:
        until(lambda: set(replica.content()) == {"dog"})
        cat = add(store, "cat")  # by a replica with the old model
        until(lambda: set(replica.content()) == {"dog", "cat"})
        assert reported == ["dog", "cat"] and replica.sync.num_missing == 0
        assert replica.content()["cat"] == vector_of("new cat", 3).tolist()
        # A rename by the old replica removes the new encoder's vector, so the label is encoded again.
        store.update(cat.id, LabelChanges(name="lion"), vector=vector_of("lion"), fingerprint=FINGERPRINT)
        until(lambda: set(replica.content()) == {"dog", "lion"})
        assert replica.content()["lion"] == vector_of("new lion", 3).tolist()
        old_replica.await_store()
        assert old_replica.content() == expected("dog", "lion")


def test_labels_without_vector_are_counted(store: LabelStore) -> None:
    dog = add(store, "dog")
    with Replica(store, "encoder-2", 3) as replica:
        assert replica.sync.num_missing == 1 and replica.content() == {}
        store.remove(dog.id)
        replica.await_store()
        assert replica.sync.num_missing == 0


def test_a_corrupt_vector_counts_as_missing(store: LabelStore, server: redis.Redis) -> None:
    add(store, "dog")
    cat = add(store, "cat")
    server.hset("vidlex:{default}:vectors:" + FINGERPRINT, cat.id, b"\0" * (4 * DIM + 4 - 1) + b"\1")
    with Replica(store) as replica:
        assert replica.content() == expected("dog") and replica.sync.num_missing == 1


def test_load_rejects_an_index_of_another_dimension(store: LabelStore) -> None:
    add(store, "dog")
    replica = Replica(store, FINGERPRINT, DIM + 1)
    with pytest.raises(IndexMismatch):
        replica.sync.load()
    assert not replica.sync.is_healthy and len(replica.index) == 0


def test_wait_for_revision_ends_after_its_timeout_and_on_close(store: LabelStore) -> None:
    add(store, "dog")
    with Replica(store) as replica:
        assert replica.sync.wait_for_revision(1, 0.0)
        assert not replica.sync.wait_for_revision(2, 0.05)
        answers: list[bool] = []
        waiting = threading.Thread(
            target=lambda: answers.append(replica.sync.wait_for_revision(99, 2 * PATIENCE_SECONDS))
        )
        waiting.start()
        replica.sync.close()
        waiting.join(PATIENCE_SECONDS)
        assert answers == [False]
        replica.sync.close()
    assert not replica.sync.is_healthy


def test_the_index_recovers_after_an_outage(tmp_path: Path) -> None:
    process = StoreProcess(tmp_path)
    process.start()
    try:
        store = LabelStore(process.client())
        dog = add(store, "dog")
        with Replica(store) as replica:
            process.kill()
            process.start()
            until(lambda: replica.sync.is_healthy)
            add(store, "cat")
            replica.await_store()
            process.kill()
            until(lambda: not replica.sync.is_healthy)
            # Searches use the content before the outage.
            assert replica.content() == expected("dog", "cat")
            with pytest.raises(StoreUnavailable):
                store.remove(dog.id)
            process.start()
            until(lambda: replica.sync.is_healthy)
            store.remove(dog.id)
            replica.await_store()
            assert replica.content() == expected("cat")
    finally:
        process.close()


def test_the_thread_survives_an_unexpected_error(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Replica(store) as replica:
        broken = threading.Event()

        def apply(*_: object, **__: object) -> None:
            broken.set()
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(replica.index, "apply", apply)
            add(store, "dog")
            assert broken.wait(PATIENCE_SECONDS)
        replica.await_store()
        until(lambda: replica.sync.is_healthy)
        assert replica.content() == expected("dog")
        assert "reloading all labels" in caplog.text
