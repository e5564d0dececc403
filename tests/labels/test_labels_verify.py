"""What verify_namespace finds: every kind of damage, and nothing in a namespace that is whole."""

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
    ("damage", "told"),
    [
        (lambda c, i: c.hdel(BASE + "names", "hound"), "lacks ('hound'"),
        (lambda c, i: c.hset(BASE + "names", "x", i), "holds ('x'"),
        (lambda c, i: c.zrem(BASE + "order", i), "order lacks"),
        (lambda c, i: c.zrem(BASE + "texts", f"dog\0{i}"), "texts lacks"),
        (lambda c, i: c.zadd(BASE + "category:pet", {"x": 0}), "category:pet holds 'x'"),
        (lambda c, i: c.zadd(BASE + "category:gone", {i: 0}), "category:gone holds"),
        (lambda c, i: c.hdel(BASE + "records", i), "without reason"),
        (lambda c, i: c.hset(BASE + "records", i, "{}"), "cannot be read"),
        (lambda c, i: c.hset(BASE + "vectors:" + FINGERPRINT, i, b"1234"), "the vector of"),
        (lambda c, i: c.hset(BASE + "vectors:" + FINGERPRINT, "lbl_x", b""), "which is not there"),
        (lambda c, i: c.delete(BASE + "children:" + i), "children"),
        (lambda c, i: c.xdel(BASE + "changes", "2-0"), "holes"),
    ],
)
def test_damage_is_found(store: LabelStore, client: redis.Redis, damage: Callable[[Any, str], Any], told: str) -> None:
    dog = add(store, "dog", aliases=("hound",), categories=("pet",))
    add(store, "puppy", parents=("dog",))
    store.remove(add(store, "cat", categories=("wild",)).id)
    assert verify_namespace(client) == []
    damage(client, dog.id)
    assert any(told in line for line in verify_namespace(client)), verify_namespace(client)


def test_an_empty_namespace_is_whole(client: redis.Redis) -> None:
    assert verify_namespace(client, "nobody") == []
