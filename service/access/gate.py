"""Who may come in. Decides from memory alone; a thread keeps that memory equal to the store and to the key file.

With the store gone the keys stay as they were last read: known keys go on, a key made or revoked meanwhile is learnt
of when the store is back, and an expiry holds all the same, since it is part of the record. A replica that starts
while the store is away knows the keys of its file alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidlex.service.access.api_keys import KeyRecord, Principal, Scope, digest_of, key_id_of, matches, new_key
from vidlex.service.access.key_file import KeyFileError, read_key_file
from vidlex.service.access.key_store import KeyStore
from vidlex.service.access.token_buckets import Buckets, Grant
from vidlex.service.errors import ModelLoading, NoApiKeys, RateLimited, StoreUnavailable, Unauthorized

POLL_SECONDS = 0.4
"""How often the store is asked for news: bounds how long a revoked key lives on other replicas."""
_FULL_SECONDS = 30.0
_USED_SECONDS = 60.0
_FAILURES_PER_SECOND = 1.0
_FAILURES_BURST = 20
_NO_DIGEST = digest_of("")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateOptions:
    insecure: bool = False
    """Nobody needs a key. Only when a person says so."""
    loopback: bool = True
    """The service listens on a loopback address alone: open until the first key is made."""
    key_file: Path | None = None
    requests_per_second: float = 100.0
    """0: unlimited."""
    burst: int = 200


class Gate:
    """``attach`` when the store is there, ``close`` at the end. Public methods may be called from any thread."""

    def __init__(self, options: GateOptions, *, clock: Callable[[], float] = time.time) -> None:
        """Raises KeyFileError when the file of the options cannot be used."""
        self._options = options
        self._clock = clock
        self._file_keys = {} if options.key_file is None else read_key_file(options.key_file)
        self._file_state = _state_of(options.key_file)
        self._stored: dict[str, KeyRecord] = {}
        self._revision: int | None = None
        self._store: KeyStore | None = None
        self._buckets = Buckets()
        self._failures = Buckets()
        self._used: dict[str, int] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    # --- life

    def attach(self, store: KeyStore) -> None:
        """Read the keys and follow them from now on.

        Raises StoreUnavailable, and NoApiKeys when the service would listen on a public address with no key that
        could ever be used.
        """
        self._revision, self._stored = store.load()
        self._store = store
        if not (self._options.insecure or self._options.loopback or self._file_keys or self._stored):
            raise NoApiKeys
        self._thread = threading.Thread(target=self._follow, name="vidlex-access", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=15.0)

    @property
    def store(self) -> KeyStore:
        if self._store is None:
            raise ModelLoading("The service is not ready yet; /readyz tells why")
        return self._store

    def refresh(self) -> None:
        """Have this replica know at once what it has just written."""
        self._revision, self._stored = self.store.load()

    # --- the decision

    @property
    def is_open(self) -> bool:
        """Nobody needs a key: said so, or on loopback where no key has ever been made.

        Raises ModelLoading on loopback while it is not known yet whether there are keys.
        """
        if self._options.insecure:
            return True
        if not self._options.loopback or self._file_keys:
            return False
        if self._revision is None:
            raise ModelLoading("The service is not ready yet; /readyz tells why")
        return self._revision == 0

    @property
    def closes_with_a_key(self) -> bool:
        """Open only because no key was ever made: the next one shuts out whoever has none."""
        return self.is_open and not self._options.insecure

    def authenticate(self, text: str, address: str) -> KeyRecord:
        """The key of this text. Raises Unauthorized, or RateLimited after many wrong ones from one address.

        Right keys are never held up by other people's wrong ones, even where a proxy gives all one address.
        """
        key_id = key_id_of(text) or ""
        record = self._file_keys.get(key_id) or self._stored.get(key_id)
        # Compared in any case, so that the time does not tell which ids exist.
        right = matches(text, _NO_DIGEST if record is None else record.digest)
        now_ms = int(self._clock() * 1000)
        if record is None or not right or record.expired(now_ms):
            grant = self._failures.take(address, _FAILURES_PER_SECOND, _FAILURES_BURST)
            if not grant.allowed:
                error = RateLimited("Too many wrong API keys came from this address")
                error.retry_after_seconds = grant.retry_after_seconds
                raise error
            raise Unauthorized("This API key is not known, was revoked or has expired")
        self._used[record.id] = now_ms - now_ms % 60_000
        return record

    def admit(self, record: KeyRecord) -> Grant | None:
        """Count one request of the key; None: it has no limit."""
        options = self._options
        per_second = options.requests_per_second if record.requests_per_second is None else record.requests_per_second
        if per_second <= 0:
            return None
        return self._buckets.take(record.id, per_second, record.burst or options.burst)

    # --- the thread

    def _follow(self) -> None:
        last_full = last_used = time.monotonic()
        while not self._stopping.is_set():
            self._wake.wait(POLL_SECONDS)
            now = time.monotonic()
            self._reread_file()
            try:
                if self.store.revision() != self._revision or now - last_full > _FULL_SECONDS:
                    self.refresh()
                    last_full = now
                if now - last_used > _USED_SECONDS or self._stopping.is_set():
                    self._flush_used()
                    last_used = now
            except StoreUnavailable:
                continue  # the runtime watches the store and says so; here the last known keys stay
            except Exception:  # this thread must never end: revoked keys would live on
                _log.exception("following the API keys failed")

    def _flush_used(self) -> None:
        used, self._used = self._used, {}
        self.store.note_used(used)

    def _reread_file(self) -> None:
        path = self._options.key_file
        state = _state_of(path)
        if path is None or state == self._file_state:
            return
        self._file_state = state
        try:
            self._file_keys = read_key_file(path)
            _log.info("the file of API keys was read anew: %d keys", len(self._file_keys))
        except KeyFileError as error:
            _log.error("the file of API keys is not usable now; its last keys stay: %s", error)


def make_record(
    *,
    scope: Scope,
    namespace: str | None,
    name: str = "",
    expires_at_ms: int | None = None,
    requests_per_second: float | None = None,
    burst: int | None = None,
    max_labels: int | None = None,
) -> tuple[KeyRecord, str]:
    """A new key: what to store of it, and its text for whoever asked, once."""
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


def principal_of(record: KeyRecord) -> Principal:
    return Principal(record.id, record.scope, record.namespace, record.max_labels)


def _state_of(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with the file. A mounted secret is exchanged through links, which ``stat`` follows."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
