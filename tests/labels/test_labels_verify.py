"""Every kind of damage is reported, survived by a service, and repaired; none is found in a consistent namespace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis

from support.stores import DIM, FINGERPRINT, add, vector_of
from vidlex.service.errors import LabelCorrupt, LabelExists
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import LabelChanges, label_to_json
from vidlex.service.labels.store.verify import repair_namespace, verify_namespace

BASE = "vidlex:{default}:"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c, i: c.hdel(BASE + "names", "hound"), "is missing ('hound'"),
        (lambda c, i: c.hset(BASE + "names", "x", i), "has the unexpected entry ('x'"),
        (lambda c, i: c.zrem(BASE + "order", i), "order is missing"),
        (lambda c, i: c.zrem(BASE + "texts", f"dog\0{i}"), "texts is missing"),
        (lambda c, i: c.zadd(BASE + "category:pet", {"x": 0}), "category:pet has the unexpected entry 'x'"),
        (lambda c, i: c.zadd(BASE + "category:gone", {i: 0}), "category:gone has the unexpected entry"),
        (lambda c, i: c.hdel(BASE + "records", i), "has the unexpected entry"),
        (lambda c, i: c.hset(BASE + "records", i, "{}"), "cannot be read"),
        (lambda c, i: c.hset(BASE + "vectors:" + FINGERPRINT, i, b"1234"), "the vector of"),
        (lambda c, i: c.hset(BASE + "vectors:" + FINGERPRINT, "lbl_x", b""), "has a vector of the unknown label lbl_x"),
        (lambda c, i: c.delete(BASE + "children:" + i), "children"),
        (lambda c, i: c.xdel(BASE + "changes", "2-0"), "gaps"),
    ],
)
def test_damage_is_reported(
    store: LabelStore, client: redis.Redis, damage: Callable[[Any, str], Any], message: str
) -> None:
    dog = add(store, "dog", aliases=("hound",), categories=("pet",))
    add(store, "puppy", parents=("dog",))
    store.remove(add(store, "cat", categories=("wild",)).id)
    assert verify_namespace(client) == []
    damage(client, dog.id)
    assert any(message in line for line in verify_namespace(client)), verify_namespace(client)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c, i: c.hdel(BASE + "names", "hound"),
        lambda c, i: c.hset(BASE + "names", "x", i),
        lambda c, i: c.hset(BASE + "names", "hound", "lbl_x"),
        lambda c, i: c.hset(BASE + "names", b"\xff", b"\xfe"),
        lambda c, i: c.zrem(BASE + "order", i),
        lambda c, i: c.zadd(BASE + "order", {b"\xff\xfe": 0}),
        lambda c, i: c.zrem(BASE + "texts", f"dog\0{i}"),
        lambda c, i: c.zadd(BASE + "texts", {b"\xff\0\xfe": 0}),
        lambda c, i: c.zadd(BASE + "category:pet", {"x": 0}),
        lambda c, i: c.hdel(BASE + "records", i),
        lambda c, i: c.hset(BASE + "records", i, "{}"),
        lambda c, i: c.hset(BASE + "records", b"\xff", "{}"),
        lambda c, i: c.hset(BASE + "vectors:" + FINGERPRINT, i, b"1234"),
        lambda c, i: c.hset(BASE + "generations", FINGERPRINT, "x"),
        lambda c, i: c.hset(BASE + "generations", b"\xff", "5"),
        lambda c, i: c.hset(BASE + "calibrations", FINGERPRINT, "{"),
        lambda c, i: c.delete(BASE + "children:" + i),
        lambda c, i: c.xdel(BASE + "changes", "2-0"),
        lambda c, i: c.xtrim(BASE + "changes", maxlen=0),
        lambda c, i: c.delete(BASE + "changes"),
        lambda c, i: c.xadd(BASE + "changes", {"kind": b"\xff"}, id="5-0"),
    ],
)
def test_every_damage_is_survived_and_repaired(
    store: LabelStore, client: redis.Redis, damage: Callable[[Any, str], Any]
) -> None:
    dog = add(store, "dog", aliases=("hound",), categories=("pet",))
    puppy = add(store, "puppy", parents=("dog",))
    store.remove(add(store, "cat", categories=("wild",)).id)
    damage(client, dog.id)
    sync = IndexSync(store, LabelIndex(DIM, FINGERPRINT))
    sync.load()
    assert "puppy" in [label.name for label in store.list().data]
    store.update(puppy.id, LabelChanges(threshold=0.25))
    repair_namespace(client)
    assert verify_namespace(client) == []
    assert repair_namespace(client) == []
    assert store.get(puppy.id).threshold == 0.25
    sync.load()
    add(store, "wolf", parents=("puppy",))
    assert verify_namespace(client) == []


def test_any_wrong_byte_of_a_record_is_restored(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "dog", aliases=("hound",), metadata={"ü": [1, 2]})
    raw: Any = client.hget(BASE + "records", dog.id)
    for place in range(0, len(raw), 7):
        damaged = bytearray(raw)
        damaged[place] ^= 1 + place % 255
        client.hset(BASE + "records", dog.id, bytes(damaged))
        with pytest.raises(LabelCorrupt):
            store.get(dog.id)
        assert store.num_quarantined == 1 and store.list().data == []
        (line,) = repair_namespace(client)
        assert "restored" in line and client.hget(BASE + "records", dog.id) == raw
        assert store.get(dog.id) == dog and store.num_quarantined == 0


def test_a_record_beyond_repair_is_set_aside(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "dog", categories=("pet",))
    puppy = add(store, "puppy", parents=("dog",))
    raw: Any = client.hget(BASE + "records", dog.id)
    damaged = raw[:20] + b"\0\0" + raw[22:]
    client.hset(BASE + "records", dog.id, damaged)
    # Its children can still be changed, and its name is not free.
    assert store.update(puppy.id, LabelChanges(threshold=0.5)).parents == (dog.id,)
    with pytest.raises(LabelExists):
        add(store, "Dog")
    assert any("set aside" in line and "(dog)" in line for line in repair_namespace(client))
    assert client.hget(BASE + "quarantine", dog.id) == damaged
    assert store.get(puppy.id).parents == () and verify_namespace(client) == []
    assert add(store, "Dog").id != dog.id


def test_a_parent_of_quarantined_children_can_be_removed(store: LabelStore, client: redis.Redis) -> None:
    dog, puppy = add(store, "dog"), add(store, "puppy", parents=("dog",))
    client.hset(BASE + "records", puppy.id, "{")
    store.remove(dog.id)
    assert store.list().data == []
    repair_namespace(client)
    assert verify_namespace(client) == []


def test_a_name_of_two_labels_is_left_to_a_person(store: LabelStore, client: redis.Redis) -> None:
    dog, cat = add(store, "dog"), add(store, "cat")
    client.hset(BASE + "records", cat.id, label_to_json(replace(cat, name="dog")))
    assert any("rename one of them: not repaired" in line for line in repair_namespace(client))
    store.update(cat.id, LabelChanges(name="cat"), vector=vector_of("cat"), fingerprint=FINGERPRINT)
    repair_namespace(client)
    assert verify_namespace(client) == [] and store.find("dog") == dog


def test_an_empty_namespace_is_consistent(client: redis.Redis) -> None:
    assert verify_namespace(client, "empty") == []
