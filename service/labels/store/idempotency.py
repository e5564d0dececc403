"""Requests with an Idempotency-Key: executed by one worker at a time, answered in the same way for a day.

A request's hash holds the digest of its body, then references to the labels that its steps have created (each stored in
the transaction that creates it), and finally its answer, by reference too (see answers.py). The worker holds a lease,
which a thread renews. If its process dies, the lease expires within seconds, and the next attempt with the same key
continues with the labels that exist. Every step checks in its transaction that its worker still holds the lease, so two
attempts never both write.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import redis

from vidlex.service.errors import IdempotencyInFlight, IdempotencyKeyReused, InvalidParameter, StoreUnavailable
from vidlex.service.labels.store import request_bytes
from vidlex.service.labels.store.answers import (
    Answer,
    CreatedLabel,
    created_from_json,
    created_to_json,
    pack_answer,
    unpack_answer,
)
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.records import Label
from vidlex.service.labels.store.redis_keys import Keys, random_token
from vidlex.service.labels.store.redis_types import RedisPipeline, RedisWrites, Value, typed_client

RETENTION_SECONDS = 24 * 3600
LEASE_SECONDS = 10.0
MAX_KEY_CHARS = 255
_ITEM = "item:"
_MAX_ATTEMPTS = 20


@dataclass
class IdempotentRequest:
    """A request whose lease this process holds, or which already has an ``answer``."""

    request_key: str
    lease_key: str
    token: str
    bytes_key: str
    is_new: bool = True
    answer: Answer | None = None
    # Of earlier, interrupted attempts, by index in the request:
    created: dict[int, CreatedLabel] = field(default_factory=dict)

    def check_lease(self, pipe: RedisPipeline) -> None:
        """For the body of a step. Raises IdempotencyInFlight unless the lease is held when the step is stored."""
        pipe.watch(self.lease_key)
        if pipe.get(self.lease_key) != self.token.encode():
            raise IdempotencyInFlight("Another attempt at this request has taken over")

    def record_created(self, pipe: RedisWrites, labels: Mapping[int, Label]) -> None:
        if labels:
            fields = {f"{_ITEM}{index}": created_to_json(CreatedLabel.of(label)) for index, label in labels.items()}
            pipe.hset(self.request_key, mapping=fields)
            request_bytes.count(pipe, self.bytes_key, sum(map(len, fields.values())))


class IdempotencyStore:
    """The requests of one namespace. Thread-safe. Every method raises StoreUnavailable."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        *,
        lease_seconds: float = LEASE_SECONDS,
        max_bytes: int = request_bytes.DEFAULT_MAX_BYTES,
    ) -> None:
        self._client = typed_client(client)
        self._keys = keys
        self._lease_ms = int(lease_seconds * 1000)
        self._max_bytes = max_bytes

    @contextmanager
    def hold(self, key: str, body: Any) -> Iterator[IdempotentRequest]:
        """Hold the request's lease while the block runs. ``body`` is parsed JSON.

        Raises InvalidParameter, IdempotencyKeyReused (the key had another body), IdempotencyInFlight, and
        ByteQuotaExceeded (a new key, while the others of the last day take too much).
        """
        if not (0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
            raise InvalidParameter(f"An Idempotency-Key is 1 to {MAX_KEY_CHARS} printable ASCII characters")
        digest = hashlib.sha256(key.encode()).hexdigest()
        keys = self._keys
        request = IdempotentRequest(keys.request(digest), keys.lease(digest), random_token(), keys.requests)
        body_digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if self._read(request, body_digest):
            yield request
            return
        with store_errors():
            if not self._client.set(request.lease_key, request.token, nx=True, px=self._lease_ms):
                raise IdempotencyInFlight("A request with this Idempotency-Key is in progress")
        ended = threading.Event()
        renewer = threading.Thread(target=self._renew_lease, args=(request, ended), name="vidlex-lease", daemon=True)
        renewer.start()
        try:
            if not self._read(request, body_digest):
                self._write_new(request, body_digest)
            yield request
        except BaseException:
            self._delete_if_nothing_created(request)
            raise
        finally:
            ended.set()
            renewer.join()
            self._write_if_leased(request, lambda pipe: pipe.delete(request.lease_key))

    def _write_new(self, request: IdempotentRequest, body_digest: str) -> None:
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            if request.is_new:
                expired = request_bytes.check(self._client, request.bytes_key, self._max_bytes)
                if expired:
                    pipe.hdel(request.bytes_key, *expired)
                request_bytes.count(pipe, request.bytes_key, request_bytes.OVERHEAD_BYTES)
            pipe.hset(request.request_key, "body", body_digest)
            pipe.expire(request.request_key, RETENTION_SECONDS)
            pipe.execute()

    def save_answer(self, request: IdempotentRequest, answer: Answer) -> None:
        with store_errors():
            body_digest = self._client.hget(request.request_key, "body")
        if body_digest is None:
            return
        packed = pack_answer(answer)
        fields: dict[str, Value] = {"body": body_digest, "answer": packed}

        def queue(pipe: RedisWrites) -> None:
            pipe.delete(request.request_key)  # the answer contains the labels stored there
            pipe.hset(request.request_key, mapping=fields)
            pipe.expire(request.request_key, RETENTION_SECONDS)
            request_bytes.count(pipe, request.bytes_key, len(packed))

        self._write_if_leased(request, queue)

    def _read(self, request: IdempotentRequest, body_digest: str) -> bool:
        with store_errors():
            known = {k.decode(): v for k, v in self._client.hgetall(request.request_key).items()}
        request.is_new = not known
        if known and known.get("body") != body_digest.encode():
            raise IdempotencyKeyReused("This Idempotency-Key was used with another body; use a new key")
        for name, raw in known.items():
            created = created_from_json(raw) if name.startswith(_ITEM) else None
            if created is not None:
                request.created[int(name.removeprefix(_ITEM))] = created
        if "answer" in known:
            request.answer = unpack_answer(known["answer"])
        return request.answer is not None

    def _delete_if_nothing_created(self, request: IdempotentRequest) -> None:
        # A rejected request may be corrected and sent again with the same key.
        with suppress(StoreUnavailable), store_errors():
            if self._client.hlen(request.request_key) == 1:
                self._write_if_leased(request, lambda pipe: self._delete(pipe, request))

    @staticmethod
    def _delete(pipe: RedisWrites, request: IdempotentRequest) -> None:
        pipe.delete(request.request_key)
        request_bytes.count(pipe, request.bytes_key, -request_bytes.OVERHEAD_BYTES)

    def _renew_lease(self, request: IdempotentRequest, ended: threading.Event) -> None:
        while not ended.wait(self._lease_ms / 3000):
            self._write_if_leased(request, lambda pipe: pipe.pexpire(request.lease_key, self._lease_ms))

    def _write_if_leased(self, request: IdempotentRequest, queue: Callable[[RedisWrites], object]) -> None:
        """Does nothing if the lease is lost or the store is unavailable."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                with store_errors(), self._client.pipeline(transaction=True) as pipe:
                    pipe.watch(request.lease_key)
                    if pipe.get(request.lease_key) != request.token.encode():
                        return
                    pipe.multi()
                    queue(pipe)
                    try:
                        pipe.execute()
                        return
                    except redis.WatchError:
                        continue  # the renewing thread changed the lease
            except StoreUnavailable:
                return
