"""Whether the server keeps what it acknowledges: no eviction, and an append-only file.

INFO tells what matters, and is allowed to users who may not read the configuration; CONFIG GET adds details.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import NoPermissionError, ResponseError

from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import WRITE_PROBE_KEY

SAFE_POLICY = "noeviction"
_PROBE_MS = 60_000


@dataclass(frozen=True)
class Durability:
    """``problems``: how acknowledged writes may be lost. ``faults``: why the server cannot store writes now."""

    problems: tuple[str, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check_durability(client: redis.Redis, *, with_notes: bool = True) -> Durability:
    """``with_notes`` asks for the configuration too, which a server may log as a violation. Raises StoreUnavailable."""
    with store_errors():
        memory = _info(client, "memory")
        persistence = _info(client, "persistence")
        is_known = "maxmemory_policy" in memory and "aof_enabled" in persistence
        config = _config(client) if with_notes or not is_known else {}
    policy = _text(memory.get("maxmemory_policy", config.get("maxmemory-policy")))
    aof = persistence.get("aof_enabled", config.get("appendonly"))
    problems, faults, notes = [], [], []
    if policy is None or aof is None:
        problems.append(
            "its maxmemory-policy and persistence cannot be read; allow this user INFO, or CONFIG GET (ACL +info)"
        )
    if policy not in (None, SAFE_POLICY):
        problems.append(f"maxmemory-policy is {policy}, which evicts labels when the memory is full; set {SAFE_POLICY}")
    if aof is not None and _text(aof) not in ("1", "yes"):
        problems.append("it has no append-only file, so a crash loses labels; set appendonly yes")
    elif (fsync := _text(config.get("appendfsync"))) not in (None, "always"):
        notes.append(f"appendfsync is {fsync}: a crash may lose the last acknowledged writes; set appendfsync always")
    if _text(persistence.get("aof_last_write_status")) == "err":
        faults.append("it cannot write its append-only file")
    return Durability(tuple(problems), tuple(faults), tuple(notes))


def probe_write(client: redis.Redis) -> None:
    """Write a key that expires. Raises StoreReadOnly, StoreFull, StoreDenied, StoreUnavailable."""
    with store_errors():
        client.set(WRITE_PROBE_KEY, "1", px=_PROBE_MS)


def _info(client: redis.Redis, section: str) -> Mapping[str, Any]:
    commands: Any = client
    try:
        return dict(commands.info(section))
    except (NoPermissionError, ResponseError):
        return {}


def _config(client: redis.Redis) -> Mapping[str, Any]:
    commands: Any = client
    try:
        found = commands.config_get("maxmemory-policy", "appendonly", "appendfsync")
    except (NoPermissionError, ResponseError):  # managed servers have no CONFIG
        return {}
    return {_text(key) or "": value for key, value in found.items()}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
