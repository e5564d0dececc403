"""Requests that carry an Idempotency-Key: worked on by one at a time, done once, answered alike for a day.

A request's hash holds the digest of its body, then the labels that its steps have created (each written in the very
transaction that created it), at last its whole answer. Who works on it holds a lease that a thread renews. If that
process dies, the lease ends within seconds; the next try with the same key finds what was created already and goes on
from there. A step checks in its transaction that the lease is still its own, so two tries never both write.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import redis

from vidlex.service.errors import IdempotencyInFlight, IdempotencyKeyReused, InvalidParameter, StoreUnavailable
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.records import Label, label_from_json, label_to_json
from vidlex.service.labels.store.redis_keys import Keys, random_token

KEPT_SECONDS = 24 * 3600
LEASE_SECONDS = 10.0
MAX_KEY_CHARS = 255
_ITEM = "item:"
_TRIES = 20


@dataclass(frozen=True)
class StoredAnswer:
    status: int
    headers: dict[str, str]
    body: str
    may_change: bool = False
    """A part of it failed in a way that another try may mend: not to be kept."""


@dataclass
class Ticket:
    """The right to work on a request, or the answer that it had (``answer``)."""

    request_key: str
    lease_key: str
    token: str
    answer: StoredAnswer | None = None
    created: dict[int, Label] = field(default_factory=dict)
    """Labels that an earlier try has created before it died, by their place in the request."""

    def guard(self, pipe: Any) -> None:
        """In a step's body: make the step fail unless this ticket still holds the lease when it is stored."""
        pipe.watch(self.lease_key)
        if pipe.get(self.lease_key) != self.token.encode():
            raise IdempotencyInFlight("Another try of this request has taken over")

    def record(self, queue: Any, labels: Mapping[int, Label]) -> None:
        """In a step's writes: these labels were created, at these places of the request."""
        if labels:
            fields = {f"{_ITEM}{place}": f"{label.id}{label_to_json(label)}" for place, label in labels.items()}
            queue.hset(self.request_key, mapping=fields)


class RequestLog:
    """The requests of one namespace. Thread-safe; raises StoreUnavailable when the store does not answer."""

    def __init__(self, client: redis.Redis, keys: Keys, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._client: Any = client
        self._keys = keys
        self._lease_ms = int(lease_seconds * 1000)

    @contextmanager
    def once(self, key: str, body: Any) -> Iterator[Ticket]:
        """Hold the request with this key while the block runs. ``body``: parsed JSON, compared by its meaning.

        Raises InvalidParameter, IdempotencyKeyReused (it was another body), IdempotencyInFlight.
        """
        if not (0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
            raise InvalidParameter(f"An Idempotency-Key is 1 to {MAX_KEY_CHARS} printable ASCII characters")
        digest = hashlib.sha256(key.encode()).hexdigest()
        ticket = Ticket(self._keys.request(digest), self._keys.lease(digest), random_token())
        body_digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if self._read(ticket, body_digest):
            yield ticket
            return
        with store_errors():
            if not self._client.set(ticket.lease_key, ticket.token, nx=True, px=self._lease_ms):
                raise IdempotencyInFlight("A request with this Idempotency-Key is being worked on")
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(ticket, ended), name="vidlex-lease", daemon=True)
        keeper.start()
        try:
            if not self._read(ticket, body_digest):
                with store_errors(), self._client.pipeline(transaction=True) as pipe:
                    pipe.hset(ticket.request_key, "body", body_digest)
                    pipe.expire(ticket.request_key, KEPT_SECONDS)
                    pipe.execute()
            yield ticket
        except BaseException:
            self._forget_if_nothing_came_of_it(ticket)
            raise
        finally:
            ended.set()
            keeper.join()
            self._if_ours(ticket, lambda pipe: pipe.delete(ticket.lease_key))

    def finish(self, ticket: Ticket, answer: StoredAnswer) -> None:
        """Keep the answer for all later tries. Nothing is kept if another try has taken over meanwhile."""
        text = json.dumps([answer.status, answer.headers, answer.body])

        def queue(pipe: Any) -> None:
            pipe.delete(ticket.request_key)  # the labels in it: the answer tells of them
            pipe.hset(ticket.request_key, mapping={"body": body_digest, "answer": text})
            pipe.expire(ticket.request_key, KEPT_SECONDS)

        with store_errors():
            body_digest = self._client.hget(ticket.request_key, "body")
        if body_digest is not None:
            self._if_ours(ticket, queue)

    def _read(self, ticket: Ticket, body_digest: str) -> bool:
        """Fill the ticket with what is known. True if the request was answered."""
        with store_errors():
            known = {k.decode(): v for k, v in self._client.hgetall(ticket.request_key).items()}
        if known and known["body"].decode() != body_digest:
            raise IdempotencyKeyReused("This Idempotency-Key came with another body before; take a new key")
        ticket.created = {
            int(name.removeprefix(_ITEM)): _parse_item(raw) for name, raw in known.items() if name.startswith(_ITEM)
        }
        if "answer" in known:
            ticket.answer = StoredAnswer(*json.loads(known["answer"]))
        return ticket.answer is not None

    def _forget_if_nothing_came_of_it(self, ticket: Ticket) -> None:
        """A request that was refused may come again in a better form with the same key."""

        def queue(pipe: Any) -> None:
            pipe.delete(ticket.request_key)

        with suppress(StoreUnavailable), store_errors():
            if self._client.hlen(ticket.request_key) == 1:
                self._if_ours(ticket, queue)

    def _keep(self, ticket: Ticket, ended: threading.Event) -> None:
        while not ended.wait(self._lease_ms / 3000):
            self._if_ours(ticket, lambda pipe: pipe.pexpire(ticket.lease_key, self._lease_ms))

    def _if_ours(self, ticket: Ticket, queue: Any) -> None:
        """Do something only if the lease is ours at that very moment. A store that is away is left alone."""
        for _ in range(_TRIES):
            try:
                with store_errors(), self._client.pipeline(transaction=True) as pipe:
                    pipe.watch(ticket.lease_key)
                    if pipe.get(ticket.lease_key) != ticket.token.encode():
                        return
                    pipe.multi()
                    queue(pipe)
                    try:
                        pipe.execute()
                        return
                    except redis.WatchError:
                        continue  # our own thread has renewed the lease just now
            except StoreUnavailable:
                return


def _parse_item(raw: bytes) -> Label:
    label_id, brace, rest = raw.decode().partition("{")
    return label_from_json(label_id, brace + rest)
