"""Ids of what the service makes: they sort by creation, to the clock of the process that made them."""

from __future__ import annotations

import re
import secrets
import time

# Crockford's alphabet: in ASCII order, without letters that are easily confused
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_DIGITS, _RANDOM_DIGITS = 10, 14
_ID = re.compile(rf"[a-z]{{2,5}}_[{_BASE32}]{{{_TIME_DIGITS + _RANDOM_DIGITS}}}")


def new_id(prefix: str) -> str:
    """``prefix``, ``_``, 10 digits of the Unix time in milliseconds and 14 random ones (70 bits)."""
    random = secrets.randbits(5 * _RANDOM_DIGITS)
    return f"{prefix}_{_base32(time.time_ns() // 1_000_000, _TIME_DIGITS)}{_base32(random, _RANDOM_DIGITS)}"


def id_at(prefix: str, unix_ms: int) -> str:
    """Sorts before every id that is made from this time on."""
    return f"{prefix}_{_base32(unix_ms, _TIME_DIGITS)}"


def is_id(text: str, prefix: str) -> bool:
    return text.startswith(f"{prefix}_") and _ID.fullmatch(text) is not None


def _base32(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_BASE32[digit])
    return "".join(reversed(digits))
