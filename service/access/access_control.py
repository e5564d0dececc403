"""Access control, decided in memory; a thread keeps the keys in step with the store and the key file.

While the store is down, the cached keys keep working and expire on time; new keys and revocations apply once it
returns. A replica that starts without a store knows only the keys of its file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from vidlex.service.access.api_keys import KeyRecord, Scope, digest_of, key_id_of, matches, new_key
from vidlex.service.access.key_file import KeyFileError, read_key_file
from vidlex.service.access.key_store import KeyStore
from vidlex.service.access.token_buckets import RateLimitDecision, TokenBuckets
from vidlex.service.errors import (
    Forbidden,
    ModelLoading,
    NoApiKeys,
    RateLimited,
    StoreLost,
    StoreUnavailable,
    Unauthorized,
)

POLL_SECONDS = 0.4  # upper bound on how long a revoked key works on other replicas
_RELOAD_SECONDS = 30.0
_FLUSH_SECONDS = 60.0
_FAILURES_PER_SECOND = 1.0
_FAILURES_BURST = 20
_MAX_KEYS_OF_LIMITED = 1000
_DUMMY_DIGEST = digest_of("")

_log = structlog.get_logger("vidlex.access")


@dataclass(frozen=True)
class AccessOptions:
    insecure: bool = False  # accept requests without a key, on any address
    loopback: bool = True  # listens on loopback only: no key is required until the first one exists
    key_file: Path | None = None
    requests_per_second: float = 100.0  # 0: unlimited
    burst: int = 200


class AccessControl:
    """Call ``attach`` once the store is open and ``close`` at the end. Thread-safe.

    Raises KeyFileError. ``attach`` raises StoreUnavailable, and NoApiKeys if the address is public and there are no
    keys.
    """

    def __init__(self, options: AccessOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._clock = clock
        self._file_keys = {} if options.key_file is None else read_key_file(options.key_file)
        self._file_version = _file_version(options.key_file)
        self._stored_keys: dict[str, KeyRecord] = {}
        self._revision: int | None = None
        self._store: KeyStore | None = None
        self._buckets = TokenBuckets()
        self._failures = TokenBuckets()
        self._used_at_ms: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def attach(self, store: KeyStore) -> None:
        self._revision, self._stored_keys = store.load()
        self._store = store
        if not (self._options.insecure or self._options.loopback or self._file_keys or self._stored_keys):
            raise NoApiKeys
        self._thread = threading.Thread(target=self._poll, name="vidlex-access", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=15.0)

    @property
    def store(self) -> KeyStore:
        if self._store is None:
            raise ModelLoading("The service is not ready; see /readyz")
        return self._store

    def refresh(self) -> None:
        """Raises StoreLost, and keeps the keys, if the store has none although it had some: it was emptied."""
        revision, stored_keys = self.store.load()
        if revision == 0 and self._revision:
            raise StoreLost(internal="the store no longer has the API keys that this service has read from it")
        self._revision, self._stored_keys = revision, stored_keys

    @property
    def is_open(self) -> bool:
        """Whether requests need no key. Raises ModelLoading on loopback before ``attach``."""
        if self._options.insecure:
            return True
        if not self._options.loopback or self._file_keys:
            return False
        if self._revision is None:
            raise ModelLoading("The service is not ready; see /readyz")
        return self._revision == 0

    @property
    def closes_with_first_key(self) -> bool:
        return self.is_open and not self._options.insecure

    def authenticate(self, text: str, address: str) -> KeyRecord:
        """Raises Unauthorized, or RateLimited after many wrong keys from one address.

        Valid keys are never rate limited by failures: behind a proxy, all clients may share one address.
        """
        key_id = key_id_of(text) or ""
        record = self._find(key_id)
        # Also compares for unknown ids, so that the response time does not reveal which ids exist.
        is_valid = matches(text, _DUMMY_DIGEST if record is None else record.digest)
        now_ms = int(self._clock() * 1000)
        if record is None or not is_valid or record.is_expired(now_ms):
            decision = self._failures.take(address, _FAILURES_PER_SECOND, _FAILURES_BURST)
            if not decision.is_allowed:
                raise RateLimited(
                    "Too many invalid API keys from this address", retry_after_seconds=decision.retry_after_seconds
                )
            raise Unauthorized("The API key is unknown, revoked or expired")
        self._used_at_ms[record.id] = now_ms - now_ms % 60_000
        return record

    def check_rate(self, record: KeyRecord) -> RateLimitDecision | None:
        own = self._take(record.id, record)
        if record.limited_by is None or (own is not None and not own.is_allowed):
            return own
        shared = self._take(record.limited_by, self._find(record.limited_by) or record)
        return own if shared is None or (own is not None and shared.is_allowed) else shared

    def limit_new_key(self, new: KeyRecord, creator_id: str) -> KeyRecord:
        """The new key, with no more rights than the key that creates it, if that one is limited.

        Both then share one rate limit. Raises Forbidden if a limited key has created many keys.
        """
        creator = self._find(creator_id)
        if creator is None or not creator.is_limited:
            return new
        limited_by = creator.limited_by or creator.id
        if sum(record.limited_by == limited_by for record in self._stored_keys.values()) >= _MAX_KEYS_OF_LIMITED:
            raise Forbidden(f"A limited API key creates at most {_MAX_KEYS_OF_LIMITED} keys; revoke some of them")
        per_second, burst = self._rate_of(creator)
        new_per_second, new_burst = self._rate_of(new)
        if per_second > 0 and not 0 < new_per_second <= per_second:
            new = replace(new, requests_per_second=per_second)
        return replace(
            new,
            burst=burst if new_burst > burst else new.burst,
            max_labels=_least(new.max_labels, creator.max_labels),
            expires_at_ms=_least(new.expires_at_ms, creator.expires_at_ms),
            limited_by=limited_by,
        )

    def revoke(self, key_id: str, *, namespace: str | None) -> None:
        """Of the stored keys. Raises NotFound, LastAdminKey."""
        has_others = any(record.can_manage_keys for record in self._file_keys.values())
        self.store.revoke(key_id, namespace=namespace, keep_admin=not has_others)
        self.refresh()

    def _find(self, key_id: str) -> KeyRecord | None:
        return self._file_keys.get(key_id) or self._stored_keys.get(key_id)

    def _rate_of(self, record: KeyRecord) -> tuple[float, int]:
        """Requests per second, 0 for any number, and the size of a burst."""
        options = self._options
        per_second = options.requests_per_second if record.requests_per_second is None else record.requests_per_second
        return per_second, record.burst or options.burst

    def _take(self, bucket: str, limits: KeyRecord) -> RateLimitDecision | None:
        per_second, burst = self._rate_of(limits)
        return self._buckets.take(bucket, per_second, burst) if per_second > 0 else None

    def _poll(self) -> None:
        reloaded_at = flushed_at = time.monotonic()
        while not self._stopping.is_set():
            self._stopping.wait(POLL_SECONDS)
            now = time.monotonic()
            self._reload_key_file()
            try:
                if self.store.revision() != self._revision or now - reloaded_at > _RELOAD_SECONDS:
                    self.refresh()
                    reloaded_at = now
                if now - flushed_at > _FLUSH_SECONDS or self._stopping.is_set():
                    used_at_ms, self._used_at_ms = self._used_at_ms, {}
                    self.store.note_used(used_at_ms)
                    flushed_at = now
            except StoreUnavailable:
                continue  # logged by the runtime's own watch of the store
            except Exception:  # if this thread ended, revoked keys would keep working
                _log.exception("api_key_poll_failed")

    def _reload_key_file(self) -> None:
        path = self._options.key_file
        version = _file_version(path)
        if path is None or version == self._file_version:
            return
        self._file_version = version
        try:
            self._file_keys = read_key_file(path)
            _log.info("api_key_file_reloaded", num_keys=len(self._file_keys))
        except KeyFileError as error:
            _log.error("api_key_file_invalid", detail=f"{error}; the previous keys stay in use")


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def create_key_record(
    *,
    scope: Scope,
    namespace: str | None,
    name: str = "",
    expires_at_ms: int | None = None,
    requests_per_second: float | None = None,
    burst: int | None = None,
    max_labels: int | None = None,
) -> tuple[KeyRecord, str]:
    key_id, text = new_key()
    record = KeyRecord(
        id=key_id,
        digest=digest_of(text),
        scope=scope,
        namespace=namespace,
        name=name,
        created_at_ms=time.time_ns() // 1_000_000,
        expires_at_ms=expires_at_ms,
        requests_per_second=requests_per_second,
        burst=burst,
        max_labels=max_labels,
    )
    return record, text


def _file_version(path: Path | None) -> tuple[int, int, int] | None:
    # stat follows links: mounted secrets are replaced by switching links.
    try:
        status = None if path is None else path.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
