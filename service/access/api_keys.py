"""API keys: their text form, the stored record and their scopes.

A key is ``vdx_<id>_<secret>``: 12 hexadecimal digits that may be logged, and 64 secret ones. Only the SHA-256 of the
whole text is stored. A slow hash (bcrypt, argon2) would add nothing for 256 random bits, and would let unauthenticated
clients consume CPU time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["read", "write", "admin"]
# Each includes the ones before it. read: list and classify; write: change labels; admin: everything.
SCOPES: tuple[Scope, ...] = get_args(Scope)

ANY_NAMESPACE = "*"
_KEY = re.compile(r"vdx_(?P<id>[0-9a-f]{12})_[0-9a-f]{64}")
_KEY_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class KeyRecord:
    id: str
    digest: str  # SHA-256 of the key's text, 64 hexadecimal digits
    scope: Scope
    namespace: str | None = None  # None: every namespace
    name: str = ""
    created_at_ms: int = 0
    expires_at_ms: int | None = None
    # None: the default of the settings.
    requests_per_second: float | None = None
    burst: int | None = None
    max_labels: int | None = None  # labels in the namespace; with more, this key cannot add labels
    limited_by: str | None = None  # id of the limited key whose rate limit this one shares, because it was made with it

    @property
    def is_limited(self) -> bool:
        """Whether the key must not create keys that may do more than itself."""
        limits = (self.namespace, self.requests_per_second or None, self.burst, self.max_labels, self.expires_at_ms)
        return self.limited_by is not None or any(limit is not None for limit in limits)

    @property
    def can_manage_keys(self) -> bool:
        """All of them, for ever."""
        return self.scope == "admin" and self.namespace is None and self.expires_at_ms is None

    @property
    def principal(self) -> Principal:
        return Principal(self.id, self.scope, self.namespace, self.max_labels)

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def to_json(self) -> str:
        fields = {key: value for key, value in vars(self).items() if value is not None}
        return json.dumps(fields, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True)
class Principal:
    key_id: str
    scope: Scope
    namespace: str | None
    max_labels: int | None = None

    def allows(self, required: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(required)


def record_from_json(text: str | bytes) -> KeyRecord:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("not a key record")
    known = {key: value for key, value in fields.items() if key in KeyRecord.__dataclass_fields__}
    try:
        record = KeyRecord(**known)
    except TypeError as error:
        raise ValueError("not a key record") from error
    if record.scope not in SCOPES or not is_key_id(record.id) or len(record.digest) != 64:
        raise ValueError("not a key record")
    return record


def new_key() -> tuple[str, str]:
    key_id = secrets.token_hex(6)
    return key_id, f"vdx_{key_id}_{secrets.token_hex(32)}"


def key_id_of(text: str) -> str | None:
    match = _KEY.fullmatch(text)
    return None if match is None else match["id"]


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, digest: str) -> bool:
    return hmac.compare_digest(digest_of(text), digest)
