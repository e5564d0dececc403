"""Validation and normalisation of names and aliases.

The *display name* is shown and encoded: NFKC, single spaces, original case. The *normalised name* decides uniqueness:
it is also case-folded, without joiners and variation selectors, which are invisible.
"""

from __future__ import annotations

import re
import unicodedata

from vidlex.service.bounds import MAX_NAME_CHARS
from vidlex.service.errors import LabelTextInvalid

_MAX_RAW_CHARS = 1024  # checked before normalisation, which takes quadratic time for long runs of combining marks

_JOINERS = "\u200c\u200d"  # ZWNJ and ZWJ: required in Persian and in composed emoji
# Joiners, text and emoji presentation: allowed in a name but ignored in comparisons.
_INVISIBLE = re.compile(r"[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\u200c\u200d]")
# Letters and symbols without a glyph: Hangul fillers, inherent Khmer vowels, blank Braille.
_BLANK_LETTERS = re.compile(r"[\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")
_HIDDEN_TEXT = re.compile(r"[\U000e0000-\U000e0fff]")  # tags and supplementary variation selectors
_REJECTED_CATEGORIES = {
    "Cc": "control characters",
    "Cf": "invisible or bidirectional format characters",
    "Cs": "broken Unicode (a lone surrogate)",
    "Co": "private-use characters",
    "Cn": "unassigned characters",
    "Zl": "line separators",
    "Zp": "paragraph separators",
}


def display_name(name: str) -> str:
    """Idempotent. Raises LabelTextInvalid."""
    if len(name) > _MAX_RAW_CHARS:
        raise LabelTextInvalid(f"The text is longer than {MAX_NAME_CHARS} characters")
    _check_characters(name)
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    # Collapsing spaces may join a combining mark and a letter, so normalise again.
    shown = " ".join(unicodedata.normalize("NFKC", shown).split())
    _check_characters(shown)
    if len(shown) > MAX_NAME_CHARS:
        raise LabelTextInvalid(f"The text is longer than {MAX_NAME_CHARS} characters")
    if not any(unicodedata.category(c)[0] in "LNPS" for c in shown):
        raise LabelTextInvalid("The text is empty")
    return shown


def normalize_name(name: str) -> str:
    return fold(display_name(name))


def fold(text: str) -> str:
    """The normalised name without validation. Idempotent; accepts any text."""
    while True:
        # Folding and composition can undo each other (U+0345, U+1E9E), so repeat until the text is stable.
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).casefold())
        folded = " ".join(folded.split())
        if folded == text:
            return folded
        text = folded


def _check_characters(text: str) -> None:
    for char in text:
        if char in _JOINERS:
            continue
        reason = _REJECTED_CATEGORIES.get(unicodedata.category(char))
        if reason is not None:
            raise LabelTextInvalid(f"The text contains {reason}")
    if _BLANK_LETTERS.search(text) or _HIDDEN_TEXT.search(text):
        raise LabelTextInvalid("The text contains invisible characters")
