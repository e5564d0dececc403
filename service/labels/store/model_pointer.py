"""The model pointer: which models every replica loads, and which one of them serves."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

import redis

from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import MODEL_POINTER_KEY
from vidlex.service.labels.store.redis_types import Guard, accept_any, typed_client

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelName:
    spec: str  # loads the model
    id: str  # shown to users
    fingerprint: str  # identifies its vectors


@dataclass(frozen=True)
class ModelPointer:
    """Applies only to replicas whose VIDLEX_MODEL equals ``configured``.

    An activation therefore survives restarts, and an operator who edits VIDLEX_MODEL overrides an older pointer until
    the next change replaces it.
    """

    configured: str  # VIDLEX_MODEL of the replica that set the pointer
    served: ModelName
    previous: ModelName | None = None  # stays loaded, so that a rollback is immediate
    prepared: ModelName | None = None  # loaded while its labels are encoded

    def applies_to(self, configured: str) -> bool:
        return self.configured == configured

    def names(self) -> list[ModelName]:
        return [name for name in (self.served, self.previous, self.prepared) if name is not None]


class ModelPointerStore:
    """Thread-safe. Every method raises StoreUnavailable. ``guard`` may refuse writes to the server."""

    def __init__(self, client: redis.Redis, *, guard: Guard = accept_any) -> None:
        self._client = typed_client(client)
        self._guard = guard

    def get(self) -> ModelPointer | None:
        with store_errors():
            return _parse(self._client.get(MODEL_POINTER_KEY))

    def compare_and_set(self, expected: ModelPointer | None, new: ModelPointer) -> bool:
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(MODEL_POINTER_KEY)
            self._guard(pipe)
            if _parse(pipe.get(MODEL_POINTER_KEY)) != expected:
                return False
            pipe.multi()
            pipe.set(MODEL_POINTER_KEY, json.dumps(asdict(new)))
            try:
                pipe.execute()
            except redis.WatchError:
                return False
            return True


def _parse(raw: bytes | None) -> ModelPointer | None:
    """A pointer that is damaged counts as missing: VIDLEX_MODEL is served, and the next change replaces it."""
    if raw is None:
        return None
    try:
        data = json.loads(raw)
        names = {role: ModelName(**data[role]) if data[role] else None for role in ("previous", "prepared")}
        return ModelPointer(data["configured"], ModelName(**data["served"]), **names)
    except (ValueError, KeyError, TypeError) as error:
        _log.error("the model pointer is damaged, so the configured model is served: %r", error)
        return None
