"""What a label may be called, and when two names are the same name.

A name has two forms. The *display name* is what people and the encoder read: NFKC, spaces collapsed, case kept.
The *normalised name* is what uniqueness is decided on: also case-folded, and without the joiners and variation
selectors that the eye does not see. Aliases obey the same rules.
"""

from __future__ import annotations

import re
import unicodedata

from vidlex.service.errors import LabelTextInvalid

MAX_NAME_CHARS = 128
_MAX_RAW_CHARS = 1024
"""Refused before any Unicode work, which is quadratic in long runs of combining marks."""

_JOINERS = "\u200c\u200d"
"""ZWNJ and ZWJ: needed to write Persian and family emoji, invisible by themselves."""
_INVISIBLE = re.compile(r"[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\u200c\u200d]")
"""Legal inside a name (text or emoji presentation, joiners) but without a say in which name it is."""
_BLANK_LETTERS = re.compile(r"[\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")
"""Letters and symbols that are drawn as nothing: Hangul fillers, inherent Khmer vowels, blank Braille."""
_HIDDEN_TEXT = re.compile(r"[\U000e0000-\U000e0fff]")
"""Tags and supplementary variation selectors: a whole hidden text fits into them."""
_REFUSED_CATEGORIES = {
    "Cc": "control characters",
    "Cf": "invisible or bidirectional format characters",
    "Cs": "broken Unicode (a lone surrogate)",
    "Co": "private-use characters",
    "Cn": "unassigned characters",
    "Zl": "line separators",
    "Zp": "paragraph separators",
}


def display_name(name: str) -> str:
    """The form that is shown and encoded. Raises LabelTextInvalid; idempotent."""
    if len(name) > _MAX_RAW_CHARS:
        raise LabelTextInvalid(f"The text is longer than {MAX_NAME_CHARS} characters")
    _check_characters(name)
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    # After collapsing, a composing mark may meet a letter that a space kept apart before: once more, to be stable.
    shown = " ".join(unicodedata.normalize("NFKC", shown).split())
    _check_characters(shown)
    if len(shown) > MAX_NAME_CHARS:
        raise LabelTextInvalid(f"The text is longer than {MAX_NAME_CHARS} characters")
    if not any(unicodedata.category(c)[0] in "LNPS" for c in shown):
        raise LabelTextInvalid("The text is empty")
    return shown


def normalize_name(name: str) -> str:
    """The form in which names are compared: two labels of one namespace never share it.

    Raises LabelTextInvalid for empty text, more than 128 characters after NFKC, and control, bidirectional,
    private-use, unassigned or surrogate characters.
    """
    return fold(display_name(name))


def fold(text: str) -> str:
    """Case-folded NFKC without invisible characters and with single spaces. Never raises; idempotent."""
    while True:
        # Folding can undo a composition and the other way round (U+0345, U+1E9E ...), so until nothing moves.
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).casefold())
        folded = " ".join(folded.split())
        if folded == text:
            return folded
        text = folded


def _check_characters(text: str) -> None:
    for char in text:
        if char in _JOINERS:
            continue
        reason = _REFUSED_CATEGORIES.get(unicodedata.category(char))
        if reason is not None:
            raise LabelTextInvalid(f"The text contains {reason}")
    if _BLANK_LETTERS.search(text) or _HIDDEN_TEXT.search(text):
        raise LabelTextInvalid("The text contains invisible characters")
