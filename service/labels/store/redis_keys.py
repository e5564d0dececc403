"""Keys and ids of the store. Only this file builds and parses them.

    vidlex:{NAMESPACE}:changes                stream   <revision>-0 -> one atomic step
    vidlex:{NAMESPACE}:names                  hash     normalised name or alias -> label id
    vidlex:{NAMESPACE}:records                hash     label id -> JSON
    vidlex:{NAMESPACE}:order                  zset     label ids with score 0: sorted by id, which is by creation
    vidlex:{NAMESPACE}:category:<category>    zset     the same for one category
    vidlex:{NAMESPACE}:children:<label id>    zset     the same for the children of this label
    vidlex:{NAMESPACE}:texts                  zset     normalised name or alias, NUL, label id; score 0
    vidlex:{NAMESPACE}:generations            hash     encoder fingerprint -> D
    vidlex:{NAMESPACE}:vectors:<fingerprint>  hash     label id -> vector (see vectors.py)
    vidlex:{NAMESPACE}:bytes                  string   size of all labels (see label_size.py)
    vidlex:{NAMESPACE}:calibrations           hash     encoder fingerprint -> a calibration (see calibrations.py)
    vidlex:{NAMESPACE}:quarantine             hash     label id -> damaged record that a repair has set aside
    vidlex:{NAMESPACE}:request:<digest>       hash     state of a request with an Idempotency-Key; expires after a day
    vidlex:{NAMESPACE}:requests               hash     hour -> bytes written for such requests (see request_bytes.py)
    vidlex:{NAMESPACE}:lease:<digest>         string   token of the request's current worker; expires after seconds
    vidlex:{NAMESPACE}:turn                   string   token of the writer with priority; expires after two seconds

Of a namespace without labels and calibrations only the stream is left, so that revisions continue; it expires after a
day. A restore writes the same keys under ``vidlex-staged`` and renames them at its end.

The braces are a hash tag: in a cluster all keys of a namespace share a slot, so one transaction may use them.
A label id is ``lbl_`` and 24 characters: the revision that created it (8), its index in that step (4), random (12).
Ids therefore sort by creation, independently of clocks.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from vidlex.service.bounds import FINGERPRINT_PATTERN, NAMESPACE_PATTERN, NAMESPACE_RULE

PREFIX = "vidlex"
SCHEMA_VERSION_KEY = "vidlex-schema:{schema}:version"  # written by the migrations
STORE_ID_KEY = "vidlex-schema:{schema}:id"  # see identity.py
REPLACED_KEY = "vidlex-schema:{schema}:replaced"
WRITE_PROBE_KEY = "vidlex-schema:{schema}:probe"
MODEL_POINTER_KEY = "vidlex-model:{model}:pointer"
STAGING_PREFIX = "vidlex-staged"  # of a restore that has not ended
RESTORE_STATE_KEY = "vidlex-schema:{schema}:restore"  # until a restore has ended: no service uses the store
RESTORE_LOCK_KEY = "vidlex-schema:{schema}:restore-lock"

CHANGES_KEY_PATTERN = f"{PREFIX}:{{*}}:changes"  # for SCAN: one key of every namespace with a write

PlainKind = Literal[
    "changes",
    "names",
    "records",
    "order",
    "texts",
    "generations",
    "bytes",
    "calibrations",
    "quarantine",
    "requests",
    "turn",
]
KindWithArgument = Literal["category", "children", "vectors", "request", "lease"]
_PLAIN_KINDS = frozenset(get_args(PlainKind))
_KINDS_WITH_ARGUMENT = frozenset(get_args(KindWithArgument))

_NAMESPACE = re.compile(NAMESPACE_PATTERN)
_FINGERPRINT = re.compile(FINGERPRINT_PATTERN)
_KEY = re.compile(r"vidlex:\{(?P<namespace>[^{}]+)\}:(?P<kind>[a-z]+)(?::(?P<argument>.+))?", re.DOTALL)

# Crockford's alphabet: in ASCII order, without letters that are easily confused
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_LABEL_ID = re.compile(rf"lbl_[{_BASE32}]{{24}}")
MAX_LABELS_PER_STEP = 32**4


@dataclass(frozen=True)
class ParsedKey:
    namespace: str
    kind: str
    argument: str | None


@dataclass(frozen=True)
class Keys:
    namespace: str
    prefix: str = PREFIX

    def __post_init__(self) -> None:
        if not is_namespace(self.namespace):
            raise ValueError(f"a namespace is {NAMESPACE_RULE}; got {self.namespace!r}")

    @property
    def pattern(self) -> str:
        return self._key("*")

    @property
    def changes(self) -> str:
        return self._key("changes")

    @property
    def names(self) -> str:
        return self._key("names")

    @property
    def records(self) -> str:
        return self._key("records")

    @property
    def order(self) -> str:
        return self._key("order")

    @property
    def texts(self) -> str:
        return self._key("texts")

    @property
    def writer_priority(self) -> str:
        return self._key("turn")

    @property
    def num_bytes(self) -> str:
        return self._key("bytes")

    @property
    def generations(self) -> str:
        return self._key("generations")

    @property
    def calibrations(self) -> str:
        return self._key("calibrations")

    @property
    def quarantine(self) -> str:
        return self._key("quarantine")

    def category(self, category: str) -> str:
        return self._key("category", category)

    def children(self, label_id: str) -> str:
        return self._key("children", label_id)

    @property
    def requests(self) -> str:
        return self._key("requests")

    def request(self, digest: str) -> str:
        return self._key("request", digest)

    def lease(self, digest: str) -> str:
        return self._key("lease", digest)

    def vectors(self, fingerprint: str) -> str:
        check_fingerprint(fingerprint)
        return self._key("vectors", fingerprint)

    def _key(self, kind: PlainKind | KindWithArgument | Literal["*"], argument: str | None = None) -> str:
        base = f"{self.prefix}:{{{self.namespace}}}:{kind}"
        return base if argument is None else f"{base}:{argument}"


def parse_key(key: str | bytes) -> ParsedKey | None:
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
    match = _KEY.fullmatch(text)
    if match is None or not is_namespace(match["namespace"]):
        return None
    kind, argument = match["kind"], match["argument"]
    known = kind in _PLAIN_KINDS if argument is None else kind in _KINDS_WITH_ARGUMENT
    return ParsedKey(match["namespace"], kind, argument) if known else None


def is_namespace(text: str) -> bool:
    return _NAMESPACE.fullmatch(text) is not None


def check_fingerprint(fingerprint: str) -> None:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise ValueError(f"a fingerprint is 1 to 200 printable ASCII characters without spaces, got {fingerprint!r}")


def is_fingerprint(raw: bytes) -> bool:
    return _FINGERPRINT.fullmatch(raw.decode("utf-8", "replace")) is not None


def make_label_id(revision: int, index: int, token: str) -> str:
    if not (0 <= revision < 32**8 and 0 <= index < MAX_LABELS_PER_STEP):
        raise ValueError(f"out of range: {revision = }, {index = }")
    return f"lbl_{_base32(revision, 8)}{_base32(index, 4)}{token}"


def is_label_id(text: str) -> bool:
    return _LABEL_ID.fullmatch(text) is not None


def random_token() -> str:
    return _base32(secrets.randbits(60), 12)


def text_entry(text: str, label_id: str) -> str:
    # Names contain no NUL, so a text sorts before all texts that begin with it.
    return f"{text}\0{label_id}"


def parse_text_entry(entry: bytes) -> tuple[str, str]:
    text, _, label_id = entry.decode("utf-8", "replace").rpartition("\0")
    return text, label_id


def text_range(prefix: str, after: str | None = None) -> tuple[bytes, bytes]:
    """Bounds for ZRANGE BYLEX: the members of ``texts`` that begin with ``prefix`` and sort after ``after``."""
    start = f"[{prefix}" if after is None else f"({after}"
    return start.encode(), b"(" + prefix.encode() + b"\xff"  # a byte that never occurs in UTF-8


def change_entry_id(revision: int) -> str:
    return f"{revision}-0"


def parse_change_entry_id(entry_id: str | bytes) -> int:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return int(text.partition("-")[0])


def _base32(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_BASE32[digit])
    return "".join(reversed(digits))
