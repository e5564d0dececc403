"""The quota of bytes of a namespace: counted in the transaction of each write, whatever fails or is repeated."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from support.serving import add as post
from support.serving import assert_problem, serving
from support.stores import FINGERPRINT, add, url_of, vector_of
from vidlex.migrations import m004_namespace_bytes
from vidlex.migrations.runner import VERSION_KEY, migrate
from vidlex.service.errors import ByteQuotaExceeded, LabelExists, VidlexError
from vidlex.service.labels.store.connection import connect_url
from vidlex.service.labels.store.label_size import OVERHEAD_BYTES, label_bytes
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import LabelChanges, NewLabel
from vidlex.service.labels.store.verify import verify_namespace

BYTES = "vidlex:{default}:bytes"


def num_bytes(client: redis.Redis) -> int:
    return int(client.get(BYTES) or 0)  # type: ignore[arg-type]


def test_every_write_is_counted(store: LabelStore, client: redis.Redis) -> None:
    animal = add(store, "animal", metadata={"é": 1})
    assert num_bytes(client) == OVERHEAD_BYTES + len("animal") + len('{"é":1}'.encode())
    dog = add(store, "dog", aliases=("hound",), categories=("pet",), parents=("animal",))
    assert num_bytes(client) == label_bytes(animal) + label_bytes(dog)
    with pytest.raises(LabelExists):
        add(store, "HOUND", metadata={"x": "x" * 1000})
    dog = store.update(dog.id, LabelChanges(metadata={"x": "x" * 1000}, threshold=0.5))
    assert num_bytes(client) == label_bytes(animal) + label_bytes(dog)
    dog = store.update(dog.id, LabelChanges(name="cat"), vector=vector_of("cat"), fingerprint=FINGERPRINT)
    assert num_bytes(client) == label_bytes(animal) + label_bytes(dog)
    store.remove(animal.id)  # also from the parents of the other
    assert num_bytes(client) == label_bytes(store.get(dog.id)) < label_bytes(dog)
    assert verify_namespace(client) == []
    store.remove(dog.id)
    assert not client.exists(BYTES)


def test_what_does_not_fit_is_refused(client: redis.Redis) -> None:
    store = LabelStore(client, max_bytes=3000)
    first = add(store, "first", metadata={"x": "x" * 1000})
    items = [(NewLabel(f"label {i}", metadata={"x": "x" * 400}), vector_of("x")) for i in range(4)]
    results = store.add_many(items, FINGERPRINT)
    assert [isinstance(result, ByteQuotaExceeded) for result in results] == [False, False, True, True]
    with pytest.raises(ByteQuotaExceeded):
        store.update(first.id, LabelChanges(metadata={"x": "x" * 2000}))
    assert store.get(first.id) == first and verify_namespace(client) == []
    # Under a lower limit than before, labels can be made smaller and removed, not larger.
    small = LabelStore(client, max_bytes=500)
    with pytest.raises(ByteQuotaExceeded):
        small.update(first.id, LabelChanges(aliases=("a",)))
    small.update(first.id, LabelChanges(threshold=0.5))
    small.update(first.id, LabelChanges(metadata={}))
    small.remove(first.id)
    assert num_bytes(client) > 500 and verify_namespace(client) == []
    assert isinstance(add(LabelStore(client, "other", max_bytes=3000), "x").id, str)  # each namespace has its own


def test_concurrent_writers_count_the_same(client: redis.Redis) -> None:
    """And never exceed the quota together."""
    limit = 30_000
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        store = LabelStore(connect_url(url_of(client)), deadline_seconds=300, max_bytes=limit)
        own: list[str] = []
        try:
            for number in range(60):
                metadata = {"x": "x" * rng.randrange(1500)}
                try:
                    if own and rng.random() < 0.3:
                        store.remove(own.pop(rng.randrange(len(own))))
                    elif own and rng.random() < 0.4:
                        store.update(rng.choice(own), LabelChanges(metadata=metadata))
                    else:
                        own.append(add(store, f"{seed} {number}", metadata=metadata).id)
                except ByteQuotaExceeded:
                    pass
                assert num_bytes(client) <= limit
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert verify_namespace(client) == []


def test_a_wrong_count_is_found_and_stores_of_before_are_counted(store: LabelStore, client: redis.Redis) -> None:
    migrate(client)
    dog = add(store, "dog", metadata={"ü": [1, 2.5, None, {"x": "\u2028"}]}, parents=(add(store, "animal").id,))
    expected = num_bytes(client)
    client.set(BYTES, 5)
    assert verify_namespace(client) == [f"{BYTES} is 5 in place of {expected}"]
    client.delete(BYTES)
    empty = LabelStore(client, "empty")
    empty.remove(add(empty, "x").id)
    client.hset("vidlex:{empty}:generations", FINGERPRINT, 5)
    client.persist("vidlex:{empty}:changes")
    client.set(VERSION_KEY, 3)
    assert migrate(client) == ["m004_namespace_bytes"]
    assert num_bytes(client) == expected and verify_namespace(client) == []
    assert client.keys("vidlex:{empty}:*") == [b"vidlex:{empty}:changes"]
    assert 0 < client.ttl("vidlex:{empty}:changes") <= 24 * 3600 and client.ttl("vidlex:{default}:changes") == -1
    m004_namespace_bytes.apply(client)
    assert num_bytes(client) == expected
    assert store.get(dog.id) == dog


def test_over_http(tmp_path: Path) -> None:
    with serving(tmp_path, max_namespace_bytes=1100) as client:
        (label,) = post(client, "red", metadata={"x": "x" * 300})
        body: dict[str, Any] = {"labels": [{"name": "blue"}, {"name": "green", "metadata": {"x": "x" * 300}}]}
        items = client.post("/labels", json=body).json()["data"]
        assert [item["status"] for item in items] == [201, 403]
        assert items[1]["error"]["code"] == "byte_quota_exceeded"
        big = {"metadata": {"x": "x" * 900}}
        assert_problem(client.post("/labels", json={"name": "more", **big}), 403, "byte_quota_exceeded")
        assert_problem(client.patch(f"/labels/{label['id']}", json=big), 403, "byte_quota_exceeded")
        assert client.patch(f"/labels/{label['id']}", json={"metadata": {}}).status_code == 200
        assert client.post("/labels", json=body).json()["data"][1]["status"] == 201
        other = client.post("/labels", json={"name": "x"}, headers={"X-Vidlex-Namespace": "other"})
        assert other.status_code == 201


def test_every_error_of_the_quota_is_an_error_of_the_client() -> None:
    assert issubclass(ByteQuotaExceeded, VidlexError) and ByteQuotaExceeded.status == 403
