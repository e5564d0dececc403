"""verify_namespace reports every kind of damage, and nothing in a consistent namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from support.stores import FINGERPRINT, add
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.verify import verify_namespace

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


def test_an_empty_namespace_is_consistent(client: redis.Redis) -> None:
    assert verify_namespace(client, "empty") == []
