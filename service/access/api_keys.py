"""API keys: how they look, what is kept of them, and what they allow.

A key is ``vdx_<id>_<secret>``: 12 hexadecimal digits that may be shown and logged, and 64 that are secret. At rest
there is only SHA-256 of the whole text. A fast hash is right here: slow ones (bcrypt, argon2) exist for passwords that
people invent and a machine can guess, whereas 256 random bits cannot be guessed at any speed, and a slow hash would
let strangers burn our processor with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, Literal, get_args

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each includes those before it. read: list and classify; write: change labels; admin: everything, keys too."""

ANY_NAMESPACE = "*"
_KEY = re.compile(r"vdx_(?P<id>[0-9a-f]{12})_[0-9a-f]{64}")
_KEY_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class KeyRecord:
    """What is known of a key: everything but its secret."""

    id: str
    digest: str
    """SHA-256 of the key's text, 64 hexadecimal digits."""
    scope: Scope
    namespace: str | None = None
    """The only one it reaches; None: any, the request's header chooses."""
    name: str = ""
    created_at_ms: int = 0
    expires_at_ms: int | None = None
    requests_per_second: float | None = None
    """None: the settings'."""
    burst: int | None = None
    max_labels: int | None = None
    """Labels that its namespace may hold for this key to add more; None: the settings'."""

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def to_json(self) -> str:
        fields = {key: value for key, value in vars(self).items() if value is not None}
        return json.dumps(fields, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True)
class Principal:
    """Who asks: the part of a key that a request carries through the service."""

    key_id: str
    scope: Scope
    namespace: str | None
    max_labels: int | None = None

    def allows(self, wanted: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(wanted)


def record_from_json(text: str | bytes) -> KeyRecord:
    """The inverse of ``to_json``. Members of later versions are ignored. Raises ValueError."""
    found: Any = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a key record")
    known = {key: value for key, value in found.items() if key in KeyRecord.__dataclass_fields__}
    try:
        record = KeyRecord(**known)
    except TypeError as error:
        raise ValueError("not a key record") from error
    if record.scope not in SCOPES or not is_key_id(record.id) or len(record.digest) != 64:
        raise ValueError("not a key record")
    return record


def new_key() -> tuple[str, str]:
    """A fresh key's id and its whole text, which is nowhere kept."""
    key_id = secrets.token_hex(6)
    return key_id, f"vdx_{key_id}_{secrets.token_hex(32)}"


def key_id_of(text: str) -> str | None:
    """The id in a key's text; None when it is no key."""
    match = _KEY.fullmatch(text)
    return None if match is None else match["id"]


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, digest: str) -> bool:
    """In a time that does not depend on how much of it is right."""
    return hmac.compare_digest(digest_of(text), digest)
