"""Parts that work behind the requests: jobs, webhooks, kept videos, feedback."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Background:
    """Each is None only in tests of other parts."""
