"""Keys of kept videos in the store, and ids as they are stored. Only this file builds and parses them.

    vidlex-videos:{NAMESPACE}:changes           stream  an entry per step (see labels/store/transaction.py)
    vidlex-videos:{NAMESPACE}:history           string  random; names the folder of the namespace's parts
    vidlex-videos:{NAMESPACE}:records           hash    packed id -> record (see packing.py)
    vidlex-videos:{NAMESPACE}:order             zset    packed ids with score 0: sorted by id, which is by creation
    vidlex-videos:{NAMESPACE}:contents          hash    first half of a SHA-256 -> (digest of the sampling, packed id)s
    vidlex-videos:{NAMESPACE}:client-ids        zset    digest of a client's id, packed id; score 0
    vidlex-videos:{NAMESPACE}:expiry            zset    packed id -> time in milliseconds
    vidlex-videos:{NAMESPACE}:bytes             string  of all kept videos
    vidlex-videos:{NAMESPACE}:generations       hash    encoder fingerprint -> number of videos, 0 while parts are left
    vidlex-videos:{NAMESPACE}:parts:<fp>        hash    part -> its head, as JSON
    vidlex-videos:{NAMESPACE}:entries:<part>    string  an entry of 24 bytes per video that was ever in the part
    vidlex-videos:{NAMESPACE}:kills:<part>      string  4 bytes per entry that does not count any more: its number
    vidlex-videos:{NAMESPACE}:retired           zset    path of a file that may go -> since when, in milliseconds
    vidlex-videos:{NAMESPACE}:upkeep            string  token of the process that tidies up; expires
    vidlex-videos:{NAMESPACE}:matches           hash    label id -> record, as JSON (see retagging/matches.py)
    vidlex-videos:{NAMESPACE}:match-bytes       string  of the files that these records name

Entries and kills only grow, until their part is dropped: who has read n bytes of them reads on from there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache

from vidlex.service.bounds import NAMESPACE_PATTERN
from vidlex.service.labels.store.redis_keys import Keys
from vidlex.service.videos.records import VIDEO_PREFIX

PREFIX = "vidlex-videos"
CHANGES_KEY_PATTERN = f"{PREFIX}:{{*}}:changes"  # for SCAN
PACKED_ID_BYTES = 15
CONTENT_BYTES = 16  # of a SHA-256, as the field of ``contents``
SAMPLING_BYTES = 8
FINGERPRINT_BYTES = 8
PART_BYTES = 8

_CHANGES_KEY = re.compile(rf"{PREFIX}:\{{({NAMESPACE_PATTERN})\}}:changes")
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # as in ids.py
_DIGITS = {character: number for number, character in enumerate(_BASE32)}
_TIME_BITS = 70  # below the time in milliseconds
_NUM_DIGITS = 24


@dataclass(frozen=True)
class VideoKeys:
    """Raises ValueError for what is no namespace."""

    namespace: str

    @property
    def of_steps(self) -> Keys:
        return Keys(self.namespace, PREFIX)

    @property
    def changes(self) -> str:
        return self.of_steps.changes

    @property
    def history(self) -> str:
        return self._key("history")

    @property
    def records(self) -> str:
        return self._key("records")

    @property
    def order(self) -> str:
        return self._key("order")

    @property
    def contents(self) -> str:
        return self._key("contents")

    @property
    def client_ids(self) -> str:
        return self._key("client-ids")

    @property
    def expiry(self) -> str:
        return self._key("expiry")

    @property
    def num_bytes(self) -> str:
        return self._key("bytes")

    @property
    def generations(self) -> str:
        return self._key("generations")

    @property
    def retired(self) -> str:
        return self._key("retired")

    @property
    def upkeep(self) -> str:
        return self._key("upkeep")

    @property
    def matches(self) -> str:
        return self._key("matches")

    @property
    def match_bytes(self) -> str:
        return self._key("match-bytes")

    def parts(self, fingerprint: str) -> str:
        return self._key(f"parts:{fingerprint}")

    def entries(self, part: str) -> str:
        return self._key(f"entries:{part}")

    def kills(self, part: str) -> str:
        return self._key(f"kills:{part}")

    def _key(self, name: str) -> str:
        return f"{PREFIX}:{{{self.namespace}}}:{name}"


def namespace_of(changes_key: bytes) -> str | None:
    found = _CHANGES_KEY.fullmatch(changes_key.decode("utf-8", "replace"))
    return None if found is None else found[1]


def pack_id(video_id: str) -> bytes:
    """Of a valid id. Packed ids sort as ids do."""
    number = 0
    for character in video_id.removeprefix(f"{VIDEO_PREFIX}_"):
        number = number << 5 | _DIGITS[character]
    return number.to_bytes(PACKED_ID_BYTES, "big")


def unpack_id(packed: bytes) -> str:
    number = int.from_bytes(packed, "big")
    digits = [_BASE32[number >> 5 * i & 31] for i in reversed(range(_NUM_DIGITS))]
    return f"{VIDEO_PREFIX}_{''.join(digits)}"


def created_at_ms(packed: bytes) -> int:
    """By the clock of the process that made the id."""
    return int.from_bytes(packed, "big") >> _TIME_BITS


def first_id_of(time_ms: int) -> bytes:
    """The lowest packed id of this millisecond."""
    return (min(max(time_ms, 0), 2**50 - 1) << _TIME_BITS).to_bytes(PACKED_ID_BYTES, "big")


def digest(text: str | bytes, num_bytes: int) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return hashlib.blake2b(raw, digest_size=num_bytes).digest()


@lru_cache(maxsize=1024)
def fingerprint_digest(fingerprint: str) -> bytes:
    return digest(fingerprint, FINGERPRINT_BYTES)


def client_id_digest(client_id: str) -> bytes:
    return digest(client_id, 16)


def new_part() -> str:
    return secrets.token_hex(PART_BYTES)


def new_history() -> str:
    return secrets.token_hex(8)
