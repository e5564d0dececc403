"""What is in a backup comes back: everything, at one revision, whatever is written in the meantime."""

from __future__ import annotations

import io
import itertools
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
import redis

from support.backups import backup_of, content_of, labels_in, lines_of
from support.stores import FINGERPRINT, add, running_store, url_of, vector_of
from vidlex.migrations.runner import migrate
from vidlex.service.access.access_control import create_key_record
from vidlex.service.access.key_store import KeyStore
from vidlex.service.backup.restore import restore
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.connection import connect_url
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.model_pointer import ModelName, ModelPointer, ModelPointerStore
from vidlex.service.labels.store.records import LabelChanges, NewLabel
from vidlex.service.labels.store.verify import verify_namespace


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with running_store(tmp_path_factory.mktemp("other")) as client:
        yield client


@pytest.fixture
def other(other_server: redis.Redis) -> redis.Redis:
    other_server.flushall()
    return other_server


def fill(client: redis.Redis) -> None:
    migrate(client)
    for namespace in ("default", "zoo"):
        store = LabelStore(client, namespace)
        animal = add(store, "animal", categories=("thing",), metadata={"é": [1, 2.5, None, {"x": "\u0001"}]})
        dog = add(store, "dog", aliases=("hound", "犬"), parents=("animal",), threshold=0.25)
        store.update(dog.id, LabelChanges(name="cat"), vector=vector_of("cat"), fingerprint=FINGERPRINT)
        store.put_vectors("encoder-2", {dog.id: vector_of("dog", 3)})
        store.remove(add(store, "gone", parents=("animal",)).id)
        store.put_calibration(FINGERPRINT, Calibration("c1", "videos", 17, 1, False, {"mean": [0.1, 0.2]}))
        store.update(animal.id, LabelChanges(threshold=0.5))
        with store.idempotency.hold("key", {}) as request:
            store.add_many([(NewLabel("cow"), vector_of("cow"))], FINGERPRINT, idempotent_request=request)
    for name in ("first", "second"):
        record, _ = create_key_record(scope="write", namespace=None, name=name, max_labels=3)
        KeyStore(client).add(record)
        KeyStore(client).note_used({record.id: 1_700_000_000_000})
    served = ModelName("emoji-small", "emoji", FINGERPRINT)
    ModelPointerStore(client).compare_and_set(None, ModelPointer("photo-small", served, prepared=served))


def test_everything_comes_back(client: redis.Redis, other: redis.Redis) -> None:
    fill(client)
    file, written = backup_of(client)
    content = restore(other, file)
    assert content_of(other) == content_of(client)
    assert content.labels == {"default": 3, "zoo": 3} and content.num_keys == 2
    assert written.damaged == content.notes == []
    for namespace in content.labels:
        assert verify_namespace(other, namespace) == []
    assert KeyStore(other).list()[0][1] == 1_700_000_000_000
    (request,) = other.keys("vidlex:{zoo}:request:*")
    assert 0 < other.pttl(request) <= client.pttl(request) + 1000
    # Nothing of the restore itself is left.
    assert not [key for key in other.keys("*") if b"restore" in key or b"staged" in key]
    label = add(LabelStore(other), "new")
    assert label.revision == LabelStore(client).revision() + 1


def test_a_damaged_record_is_left_out_and_reported(client: redis.Redis, other: redis.Redis) -> None:
    store = LabelStore(client)
    dog, cat = add(store, "dog"), add(store, "cat")
    client.hset("vidlex:{default}:records", dog.id, "{}")
    client.hset(f"vidlex:{{default}}:vectors:{FINGERPRINT}", cat.id, b"1234")
    client.zadd("vidlex:{default}:order", {b"\xff": 0})
    client.hset("vidlex:{default}:generations", b"\xff", "x")
    client.hset("vidlex:{default}:calibrations", b"\xff", "x")
    client.hset("vidlex-access:{access}:keys", b"\xff", "x")
    client.hset(b"vidlex:{default}:request:\xff", "body", "x")
    file, written = backup_of(client)
    assert {text.split(" by ")[0] for text in written.damaged} == {
        f"label {dog.id} of namespace default",
        "label \ufffd of namespace default",
        f"the vector of {cat.id}",
        "the calibration of encoder \ufffd of namespace default",
        "the API key \ufffd",
    }
    content = restore(other, file)
    assert [label.name for label in labels_in(other)] == ["cat"]
    assert content.notes == ["namespace default: 0 of 2 vectors of encoder encoder-1"]
    assert verify_namespace(other) == []
    restore(client, file, force=True)  # what is damaged is replaced as well
    assert content_of(client) == content_of(other) and verify_namespace(client) == []
    assert not client.exists(b"vidlex:{default}:request:\xff")


class Busy:
    """Writes to a store between two pages of a backup."""

    def __init__(self, store: LabelStore, num_times: int, num_steps: int) -> None:
        self.store = store
        self.num_times = num_times
        self.num_steps = num_steps
        self.names = itertools.count()

    def __call__(self, _: int) -> None:
        if not self.num_times:
            return
        self.num_times -= 1
        labels = labels_in(self.store._client)  # type: ignore[arg-type]
        first, second, last = labels[0], labels[1], labels[-1]
        for _ in range(self.num_steps):
            add(self.store, f"new {next(self.names)}", parents=(second.id,), aliases=(f"alias {next(self.names)}",))
        freed = f"was {next(self.names)}"
        self.store.update(first.id, LabelChanges(name=freed), vector=vector_of(freed), fingerprint=FINGERPRINT)
        add(self.store, first.name)  # a name that the page before still has for another label
        self.store.remove(last.id)
        self.store.put_vectors("encoder-2", {second.id: vector_of("x", 3)})
        self.store.put_calibration(FINGERPRINT, Calibration("c2", "recent", 1, 1, True, {}))


@pytest.mark.parametrize(
    ("num_times", "num_steps", "max_changes"), [(1, 1, 10_000), (3, 2, 10_000), (1, 300, 10_000), (2, 5, 4)]
)
def test_writes_between_pages(
    client: redis.Redis, other: redis.Redis, num_times: int, num_steps: int, max_changes: int
) -> None:
    """Also if the change stream is too short to tell what was written."""
    store = LabelStore(client, max_changes=max_changes)
    items = [(NewLabel(f"label {i}", categories=(f"c{i % 3}",)), vector_of(f"label {i}")) for i in range(450)]
    store.add_many(items, FINGERPRINT)
    store.put_vectors("encoder-3", {labels_in(client)[5].id: vector_of("y", 2)})
    file, _ = backup_of(client, Busy(store, num_times, num_steps))
    assert sum(line["kind"] == "again" for line in lines_of(file)) == (max_changes < num_steps)
    restore(other, file)
    assert content_of(other) == content_of(client)
    assert verify_namespace(other) == []


def test_a_generation_dropped_during_the_backup_is_dropped(client: redis.Redis, other: redis.Redis) -> None:
    store = LabelStore(client)
    store.add_many([(NewLabel(f"label {i}"), vector_of(f"label {i}")) for i in range(450)], FINGERPRINT)
    store.put_vectors("encoder-2", {label.id: vector_of("x", 3) for label in labels_in(client)})
    file, _ = backup_of(client, lambda _: store.drop_generation("encoder-2"))
    restore(other, file)
    assert content_of(other) == content_of(client)
    assert not other.exists("vidlex:{default}:vectors:encoder-2")


@pytest.mark.timeout(600)
def test_a_backup_under_load_is_of_one_revision(client: redis.Redis, other: redis.Redis) -> None:
    """Three writers never stop; what a backup holds is what the history says about its revision."""
    stop = threading.Event()
    written: dict[str, dict[int, tuple[str, float | None]]] = {}
    errors: list[BaseException] = []

    def write(number: int) -> None:
        store = LabelStore(connect_url(url_of(client)), deadline_seconds=300)
        names = itertools.count()
        own: list[str] = []
        try:
            while not stop.is_set():
                label = add(store, f"writer {number}, {next(names)}")
                written.setdefault(label.id, {})[label.revision] = (label.name, label.threshold)
                own.append(label.id)
                changed = store.update(own[0], LabelChanges(threshold=(next(names) % 100) / 100))
                written[changed.id][changed.revision] = (changed.name, changed.threshold)
                if len(own) > 60:
                    store.remove(own.pop(0))
        except BaseException as error:
            errors.append(error)

    migrate(client)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    backups: list[tuple[io.BytesIO, int]] = []
    try:
        while len(backups) < 8:
            file, found = backup_of(client)
            if "default" in found.namespaces:
                backups.append((file, found.namespaces["default"].revision))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    changes = []
    while more := LabelStore(client).changes(changes[-1].revision if changes else 0):
        changes += more
    assert len({revision for _, revision in backups}) > 1
    for file, revision in backups:
        alive: dict[str, int] = {}
        for change in changes[:revision]:
            for label_id in change.label_ids:
                alive[label_id] = change.revision
                if change.kind == "remove":
                    del alive[label_id]
        other.flushall()
        restore(other, file)
        restored = {label.id: (label.name, label.threshold) for label in labels_in(other)}
        assert restored == {label_id: written[label_id][at] for label_id, at in alive.items()}
        assert LabelStore(other).revision() == revision
        assert verify_namespace(other) == []


def test_replicas_follow_into_the_restored_history(client: redis.Redis, other: redis.Redis) -> None:
    """A service that runs on the store sees the restored labels, also at the revision that it had."""
    store = LabelStore(client)
    add(store, "dog")
    file, _ = backup_of(client)
    running = LabelStore(other)
    add(running, "cat")
    index = LabelIndex(5, FINGERPRINT)
    sync = IndexSync(running, index)
    sync.load()
    restore(other, file, force=True)
    assert running.revision() == 1 == sync.revision
    sync._follow_once()
    assert [label.name for label in index.search(vector_of("dog")[None]).labels] == ["dog"]


def test_memory_does_not_grow_with_the_number_of_labels(client: redis.Redis, other: redis.Redis) -> None:
    peaks = []
    text = "x" * 4000
    for num in (600, 2400):
        client.flushall()
        store = LabelStore(client)
        items = [(NewLabel(f"label {i}", metadata={"text": text}), vector_of(f"label {i}")) for i in range(num)]
        store.add_many(items, FINGERPRINT)
        del items
        other.flushall()
        file = io.BytesIO()
        tracemalloc.start()
        file, _ = backup_of(client)
        restore(other, file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
