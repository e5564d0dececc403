"""Who changed what, and who was refused: one JSON object per line, in a stream of its own.

Stores record changes where they are made; the request in which they happen writes them down with its key, address and
outcome. A change outside a request, as by a command on the machine of the store, is recorded by `recording`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TextIO

AuditTarget = Literal["file", "stdout", "off"]
FILE_NAME = "audit.jsonl"
MAX_FILE_BYTES = 64 * 2**20
NUM_OLD_FILES = 9
_KEY_USE_SECONDS = 3600.0
_MAX_KEY_USES = 4096

_log = logging.getLogger("vidlex.audit")


@dataclass(frozen=True)
class Change:
    action: str  # such as label.update
    object: str  # id
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    namespace: str | None


@dataclass
class Changes:
    """Of one request; from several threads."""

    made: list[Change] = field(default_factory=list)


_changes: ContextVar[Changes | None] = ContextVar("vidlex_audit_changes", default=None)


@contextmanager
def recording() -> Iterator[Changes]:
    """Collects what `record` gets within, also in threads that copy the context."""
    changes = Changes()
    token = _changes.set(changes)
    try:
        yield changes
    finally:
        _changes.reset(token)


def record(
    action: str,
    object_id: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    namespace: str | None = None,
) -> None:
    """A change that has been stored. ``before`` and ``after`` contain no secrets."""
    changes = _changes.get()
    if changes is not None:
        changes.made.append(Change(action, object_id, before, after, namespace))


class AuditLog:
    """Thread-safe. A line that cannot be written is counted and logged; the request is answered."""

    def __init__(self, target: AuditTarget, folder: Path, *, stdout: TextIO | None = None) -> None:
        # ``stdout`` takes its place where that has other content.
        self._lock = threading.Lock()
        self._key_uses: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._handler: logging.StreamHandler[Any] | None = None
        self.num_failures = 0
        if target == "stdout":
            self._handler = logging.StreamHandler(stdout or sys.stdout)
        elif target == "file":
            self._handler = _PrivateFileHandler(
                folder / FILE_NAME, maxBytes=MAX_FILE_BYTES, backupCount=NUM_OLD_FILES, encoding="utf-8", delay=True
            )
        if self._handler is not None:
            self._handler.setFormatter(logging.Formatter("%(message)s"))
            self._handler.handleError = self._on_failure  # type: ignore[method-assign]

    def is_first_use(self, key_id: str, address: str) -> bool:
        """Whether the key was not used from the address within the last hour, as far as remembered."""
        now = time.monotonic()
        with self._lock:
            last = self._key_uses.pop((key_id, address), None)
            is_first = last is None or now - last >= _KEY_USE_SECONDS
            self._key_uses[key_id, address] = now if last is None or is_first else last
            if len(self._key_uses) > _MAX_KEY_USES:
                self._key_uses.popitem(last=False)
        return is_first

    def write(self, action: str, facts: Mapping[str, Any]) -> None:
        """``facts`` of None are left out."""
        if self._handler is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"at": at, "action": action} | {name: value for name, value in facts.items() if value is not None}
        text = json.dumps(entry, ensure_ascii=True, separators=(",", ":"), default=str)
        self._handler.handle(logging.LogRecord("vidlex.audit", logging.INFO, "", 0, text, None, None))

    def write_changes(self, changes: Changes, facts: Mapping[str, Any]) -> None:
        for change in changes.made:
            namespace = facts.get("namespace") if change.namespace is None else change.namespace
            known = {"object": change.object, "before": change.before, "after": change.after, "namespace": namespace}
            self.write(change.action, {**facts, **known})

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()

    def _on_failure(self, record: logging.LogRecord) -> None:
        self.num_failures += 1
        _log.error("audit_line_lost: %s", type(sys.exception()).__name__)


class _PrivateFileHandler(RotatingFileHandler):
    """The owner's alone: entries contain metadata of labels."""

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)
