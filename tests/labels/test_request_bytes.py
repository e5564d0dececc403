"""What is kept for requests with an Idempotency-Key has a quota per namespace."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from support.serving import assert_problem, serving
from vidlex.service.errors import ByteQuotaExceeded, StoreLost
from vidlex.service.labels.store import idempotency, request_bytes
from vidlex.service.labels.store.answers import ExistingLabel
from vidlex.service.labels.store.idempotency import IdempotencyStore
from vidlex.service.labels.store.identity import StoreGuard
from vidlex.service.labels.store.model_pointer import ModelName, ModelPointer, ModelPointerStore
from vidlex.service.labels.store.redis_keys import STORE_ID_KEY, Keys

KEYS = Keys("default")
OVERHEAD = request_bytes.OVERHEAD_BYTES


def kept(client: redis.Redis) -> int:
    return sum(map(int, client.hvals(KEYS.requests)))  # type: ignore[arg-type, union-attr]


def ask(store: IdempotencyStore, key: str) -> None:
    with store.hold(key, [1]) as request:
        if request.answer is None:
            store.save_answer(request, [ExistingLabel("lbl_x")])


def test_new_keys_are_refused_when_those_of_a_day_take_too_much(client: redis.Redis) -> None:
    store = IdempotencyStore(client, KEYS, max_bytes=3 * OVERHEAD)
    for number in range(3):
        ask(store, f"key {number}")
    before = kept(client)
    assert before > 3 * OVERHEAD
    with pytest.raises(ByteQuotaExceeded, match="Idempotency-Keys"):
        ask(store, "one more")
    for number in range(3):
        ask(store, f"key {number}")  # its answer is there
    assert kept(client) == before
    assert not client.keys(KEYS.lease("*"))
    assert len(client.keys(KEYS.request("*"))) == 3  # type: ignore[arg-type]
    ask(IdempotencyStore(client, Keys("other"), max_bytes=3 * OVERHEAD), "one more")


def test_what_was_refused_or_has_expired_does_not_count(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = IdempotencyStore(client, KEYS, max_bytes=2 * OVERHEAD)
    for number in range(5):
        with pytest.raises(ValueError, match="refused"), store.hold(f"refused {number}", [1]):
            raise ValueError("refused")
    assert kept(client) == 0
    for number in range(2):
        ask(store, f"key {number}")
    now = request_bytes._hour()
    monkeypatch.setattr(request_bytes, "_hour", lambda: now + 24)
    with pytest.raises(ByteQuotaExceeded):
        ask(store, "a key of the next day, while the first ones are kept")
    monkeypatch.setattr(request_bytes, "_hour", lambda: now + 25)
    ask(store, "a key after a day")
    assert set(client.hkeys(KEYS.requests)) == {str(now + 25).encode()}, "nothing of the day before"  # type: ignore[arg-type]
    assert 0 < client.ttl(KEYS.requests) >= idempotency.RETENTION_SECONDS  # type: ignore[operator]


def test_a_client_gets_the_code_and_may_go_on_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdempotencyStore.__init__, "__kwdefaults__", {"lease_seconds": 10.0, "max_bytes": 1})
    with serving(tmp_path) as client:
        for number, status in enumerate((200, 403)):
            body = {"labels": [{"name": f"label {number}"}]}
            answer = client.post("/labels", json=body, headers={"Idempotency-Key": f"key {number}"})
            assert answer.status_code == status, answer.text
        assert_problem(answer, 403, "byte_quota_exceeded")
        assert client.post("/labels", json=body).status_code == 200


def test_the_model_pointer_is_not_written_to_another_store(client: redis.Redis) -> None:
    guard = StoreGuard()
    guard.store_id = b"the store that was opened"
    pointers = ModelPointerStore(client, guard=guard.check)
    pointer = ModelPointer("dummy", ModelName("dummy", "dummy", "dummy-1"))
    with pytest.raises(StoreLost):
        pointers.compare_and_set(None, pointer)
    assert pointers.get() is None
    client.set(STORE_ID_KEY, guard.store_id)
    assert pointers.compare_and_set(None, pointer)
    assert pointers.get() == pointer
