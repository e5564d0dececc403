"""Answers that the service may give to an untrusted file.

Several are allowed where the result depends on the version of FFmpeg.
"""

from __future__ import annotations

from dataclasses import dataclass

Answer = tuple[int, str]  # status and code; the code of a 200 is empty

OK: Answer = (200, "")
UNSUPPORTED: Answer = (415, "unsupported_media")
UNDECODABLE: Answer = (422, "undecodable_video")
TOO_LONG: Answer = (422, "video_too_long")
TOO_LARGE: Answer = (422, "resolution_too_large")
ANY_ANSWER = frozenset((OK, UNSUPPORTED, UNDECODABLE, TOO_LONG, TOO_LARGE))


@dataclass(frozen=True)
class HostileFile:
    name: str  # file name in the multipart form
    data: bytes
    allowed: frozenset[Answer]
