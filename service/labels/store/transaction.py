"""Atomic steps on one namespace: optimistic, serialised, exactly once.

Every step watches the namespace's change stream, reads what it needs, and sends its writes and its own stream entry
as one MULTI. Since every step appends to that stream, EXEC succeeds only if nobody else wrote since WATCH: steps are
serialisable, and the revision has no holes. No Lua, so an ACL may forbid EVAL.

A long step of one replica would lose every try against a stream of short ones of another. So whoever has lost a few
takes the *turn*, for which the others wait. It is a courtesy with a time limit: nothing that must hold rests on it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import redis

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.changes import START, Change, ChangeKind, Head, change_fields, parse_change
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import Keys, change_entry_id, parse_change_entry_id, random_token

T = TypeVar("T")

_TRIES_BEFORE_TURN = 3
_TURN_MS = 2000
_TURN_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Step(Generic[T]):
    """What a body decided: the result to return, the writes to queue, and the event that tells of them."""

    result: T
    write: Callable[[Any], None]
    kind: ChangeKind
    label_ids: tuple[str, ...]
    fingerprint: str | None = None


@dataclass(frozen=True)
class NoStep(Generic[T]):
    """Nothing to write: the revision stays."""

    result: T


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


Body = Callable[[Any, int], "Step[T] | NoStep[T]"]
"""``body(pipe, revision)``: reads through ``pipe`` (at once), decides, may raise. Runs again when a try is lost."""


class StepRunner:
    """Runs steps on one namespace. Thread-safe."""

    def __init__(self, client: redis.Redis, keys: Keys, *, max_changes: int, deadline_seconds: float) -> None:
        self._client: Any = client
        self._keys = keys
        self._max_changes = max_changes
        self._deadline_seconds = deadline_seconds
        # Writers of one process queue here instead of invalidating each other's tries; other processes may still.
        self._lock = threading.Lock()

    def run(self, body: Body[T]) -> T:
        """Do the step and return its result once it is stored.

        Raises what ``body`` raises (nothing was written), or StoreUnavailable (it may have been written, if the
        connection broke between EXEC and its reply and stayed broken).
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
        tried: dict[int, T] = {}
        num_lost = 0
        has_turn = False
        try:
            while True:
                if num_lost >= _TRIES_BEFORE_TURN:
                    has_turn = self._take_turn(token)
                if not has_turn:
                    self._let_pass(deadline)
                done = self._try(body, token, tried, deadline)
                if done is not None:
                    return done.result
                num_lost += 1
                time.sleep(random.uniform(0, min(0.001 * 2**num_lost, 0.05)))
        finally:
            if has_turn:
                self._end_turn(token)

    def _try(self, body: Body[T], token: str, tried: dict[int, T], deadline: float) -> _Done[T] | None:
        """The result when the step is stored or needs no storing; None when another step came between.

        ``tried``: the results of all tries so far, by the revision that each would have made.
        """
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(self._keys.changes)
                # A lost try may have been stored although its reply was lost (redis-py reports both as WatchError).
                landed = self._find(pipe, token, min(tried)) if tried else None
                if landed is not None:
                    return _Done(tried[landed])
                head = read_head(pipe, self._keys)
                revision = head.revision + 1
                step = body(pipe, revision)
                if isinstance(step, NoStep):
                    return _Done(step.result)
                tried[revision] = step.result
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
                pipe.execute()
                return _Done(step.result)
            except redis.WatchError as error:
                if time.monotonic() > deadline:
                    raise StoreUnavailable("The label store is too busy", internal=repr(error)) from error
        return None

    def _take_turn(self, token: str) -> bool:
        with store_errors():
            return bool(self._client.set(self._keys.turn, token, nx=True, px=_TURN_MS)) or self._holds_turn(token)

    def _let_pass(self, deadline: float) -> None:
        """Wait while another writer has the turn; it ends by itself."""
        while time.monotonic() < deadline:
            with store_errors():
                if not self._client.exists(self._keys.turn):
                    return
            time.sleep(_TURN_POLL_SECONDS)

    def _holds_turn(self, token: str) -> bool:
        return bool(self._client.get(self._keys.turn) == token.encode())

    def _end_turn(self, token: str) -> None:
        with suppress(StoreUnavailable), store_errors():
            if self._holds_turn(token):
                self._client.delete(self._keys.turn)

    def _find(self, pipe: Any, token: str, since_revision: int) -> int | None:
        """The revision at which the step with ``token`` was stored, if it was."""
        for entry_id, fields in pipe.xrange(self._keys.changes, min=change_entry_id(since_revision)):
            if parse_change(entry_id, fields).token == token:
                return parse_change_entry_id(entry_id)
        return None


def read_head(pipe: Any, keys: Keys) -> Head:
    """The namespace's head, through a client or a watching pipeline."""
    for entry_id, fields in pipe.xrevrange(keys.changes, count=1):
        return parse_change(entry_id, fields).head
    if pipe.exists(keys.changes):
        # Somebody emptied the stream by hand. Its counter survives that; readers see the foreign token and reload.
        return Head(parse_change_entry_id(pipe.xinfo_stream(keys.changes)["last-generated-id"]), "")
    return START
