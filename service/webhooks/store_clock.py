from __future__ import annotations

from typing import Any


def now_ms(client: Any) -> int:
    """Unix time by the clock of the store."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
