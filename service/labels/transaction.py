"""Atomic steps on one namespace: optimistic, serialised, exactly once.

Every step watches the namespace's change stream, reads what it needs, and sends its writes and its own stream entry
as one MULTI. Since every step appends to that stream, EXEC succeeds only if nobody else wrote since WATCH: steps are
serialisable, and the revision has no holes. No Lua, so an ACL may forbid EVAL.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import redis

from service.errors import StoreUnavailable
from service.labels.changes import START, Change, ChangeKind, Head, change_fields, parse_change
from service.labels.client import store_errors
from service.labels.keys import Keys, change_entry_id, parse_change_entry_id, random_token

T = TypeVar("T")


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
        pause_seconds = 0.001
        while True:
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                try:
                    pipe.watch(self._keys.changes)
                    # A lost try may have been stored although its reply was lost (redis-py reports both as WatchError).
                    landed = self._find(pipe, token, min(tried)) if tried else None
                    if landed is not None:
                        return tried[landed]
                    head = read_head(pipe, self._keys)
                    revision = head.revision + 1
                    step = body(pipe, revision)
                    if isinstance(step, NoStep):
                        return step.result
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
                    return step.result
                except redis.WatchError as error:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable("The label store is too busy", internal=repr(error)) from error
            time.sleep(random.uniform(0, pause_seconds))
            pause_seconds = min(pause_seconds * 2, 0.1)

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
