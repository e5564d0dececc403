"""Preferences of a request (RFC 7240)."""

from __future__ import annotations

import re

from fastapi import Request

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PREFERENCE = re.compile(rf'\s*({_TOKEN})\s*(?:=\s*("[^"\\]*"|{_TOKEN}))?\s*(?:;.*)?')


def preferences_of(request: Request) -> dict[str, str]:
    """Values by name in lower case; of a preference that is named twice, the first. What cannot be read is left out."""
    found: dict[str, str] = {}
    for text in ",".join(request.headers.getlist("prefer")).split(","):
        match = _PREFERENCE.fullmatch(text)
        if match is not None:
            found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    return found


def wait_seconds_of(request: Request, at_most: int) -> int:
    """Of the preference `wait`; 0 without one."""
    text = preferences_of(request).get("wait", "")
    return min(at_most, int(text[:6])) if text.isascii() and text.isdigit() else 0
