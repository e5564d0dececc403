"""Atomic steps on one namespace: optimistic, serialisable, exactly once.

Every step watches the namespace's change stream, reads, and sends its writes and its own stream entry as one MULTI.
Since every step appends to that stream, EXEC succeeds only if no other step was committed after WATCH: steps are
serialisable, and revisions have no gaps. No Lua is used, so an ACL may forbid EVAL.

A long step of one replica could conflict forever with a series of short steps of another. After a few conflicts a
writer therefore takes a priority lock, for which other writers wait. The lock expires, and correctness does not depend
on it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.changes import EMPTY_HEAD, Change, ChangeKind, Head, change_fields, token_of
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import Keys, change_entry_id, parse_change_entry_id, random_token
from vidlex.service.labels.store.redis_types import (
    Guard,
    RedisPipeline,
    RedisReads,
    RedisWrites,
    accept_any,
    typed_client,
)

T = TypeVar("T")

FORGET_SECONDS = 24 * 3600
_CONFLICTS_BEFORE_PRIORITY = 3
_PRIORITY_MS = 2000
_PRIORITY_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Step(Generic[T]):
    result: T
    write: Callable[[RedisWrites], None]
    kind: ChangeKind
    label_ids: tuple[str, ...]
    fingerprint: str | None = None
    leaves_nothing: bool = False  # the namespace has neither labels nor calibrations: it is forgotten after a day
    on_stored: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class NoStep(Generic[T]):
    result: T


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


# (pipe, revision): reads through ``pipe``, may raise, and runs again after a conflict.
Body = Callable[[RedisPipeline, int], "Step[T] | NoStep[T]"]


class StepRunner:
    """Thread-safe."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        *,
        max_changes: int,
        deadline_seconds: float,
        guard: Guard = accept_any,
    ) -> None:
        self._client = typed_client(client)
        self._keys = keys
        self._max_changes = max_changes
        self._deadline_seconds = deadline_seconds
        self._guard = guard
        # Writers of one process queue here, which avoids conflicts among them.
        self._lock = threading.Lock()

    def run(self, body: Body[T]) -> T:
        """Return the step's result once it is stored.

        Raises the errors of ``body`` (nothing was written), or StoreUnavailable. The step may still have been written
        if the connection broke between EXEC and its reply and was not restored.
        """
        deadline = time.monotonic() + self._deadline_seconds
        if not self._lock.acquire(timeout=self._deadline_seconds):
            raise StoreUnavailable("The label store is too busy", internal="writers queue longer than the deadline")
        try:
            return self._run(body, deadline)
        finally:
            self._lock.release()

    def _run(self, body: Body[T], deadline: float) -> T:
        token = random_token()
        attempted: dict[int, Step[T]] = {}
        num_conflicts = 0
        has_priority = False
        try:
            while True:
                if num_conflicts >= _CONFLICTS_BEFORE_PRIORITY:
                    has_priority = self._acquire_priority(token)
                if not has_priority:
                    self._wait_for_priority_writer(deadline)
                done = self._attempt(body, token, attempted, deadline)
                if done is not None:
                    return done.result
                num_conflicts += 1
                time.sleep(random.uniform(0, min(0.001 * 2**num_conflicts, 0.05)))
        finally:
            if has_priority:
                self._release_priority(token)

    def _attempt(self, body: Body[T], token: str, attempted: dict[int, Step[T]], deadline: float) -> _Done[T] | None:
        """None after a conflict. ``attempted`` collects the steps of all attempts by the revision to create."""
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(self._keys.changes)
                # An attempt may have been stored although its reply was lost: redis-py reports that as WatchError too.
                stored = self._find_revision(pipe, token, min(attempted)) if attempted else None
                if stored is not None:
                    return _stored(attempted[stored])
                self._guard(pipe)
                head = read_head(pipe, self._keys)
                revision = head.revision + 1
                step = body(pipe, revision)
                if isinstance(step, NoStep):
                    return _Done(step.result)
                attempted[revision] = step
                change = Change(revision, step.kind, step.label_ids, step.fingerprint, token, head.token)
                pipe.multi()
                step.write(pipe)
                pipe.xadd(
                    self._keys.changes,
                    change_fields(change),
                    id=change_entry_id(revision),
                    maxlen=self._max_changes,
                    approximate=False,
                )
                if step.leaves_nothing:
                    pipe.expire(self._keys.changes, FORGET_SECONDS)
                else:
                    pipe.persist(self._keys.changes)
                pipe.execute()
                return _stored(step)
            except redis.WatchError as error:
                if time.monotonic() > deadline:
                    raise StoreUnavailable("The label store is too busy", internal=repr(error)) from error
        return None

    def _acquire_priority(self, token: str) -> bool:
        with store_errors():
            acquired = self._client.set(self._keys.writer_priority, token, nx=True, px=_PRIORITY_MS)
            return bool(acquired) or self._has_priority(token)

    def _wait_for_priority_writer(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            with store_errors():
                if not self._client.exists(self._keys.writer_priority):
                    return
            time.sleep(_PRIORITY_POLL_SECONDS)

    def _has_priority(self, token: str) -> bool:
        return self._client.get(self._keys.writer_priority) == token.encode()

    def _release_priority(self, token: str) -> None:
        with suppress(StoreUnavailable), store_errors():
            if self._has_priority(token):
                self._client.delete(self._keys.writer_priority)

    def _find_revision(self, pipe: RedisReads, token: str, since_revision: int) -> int | None:
        for entry_id, fields in pipe.xrange(self._keys.changes, min=change_entry_id(since_revision)):
            if token_of(fields) == token:
                return parse_change_entry_id(entry_id)
        return None


def _stored(step: Step[T]) -> _Done[T]:
    step.on_stored()
    return _Done(step.result)


def read_head(reads: RedisReads, keys: Keys) -> Head:
    for entry_id, fields in reads.xrevrange(keys.changes, count=1):
        return Head(parse_change_entry_id(entry_id), token_of(fields))
    if reads.exists(keys.changes):
        # The stream was emptied by hand. Its last id remains; readers see the unknown token and reload.
        return Head(parse_change_entry_id(reads.xinfo_stream(keys.changes)["last-generated-id"]), "")
    return EMPTY_HEAD
