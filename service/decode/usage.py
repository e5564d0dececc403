"""What a process takes, and what there is."""

from __future__ import annotations

import os
from pathlib import Path

_KEPT = ("RssAnon", "RssShmem", "VmSwap", "Threads")
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usage_of(pid: int) -> tuple[int, int] | None:
    """(bytes of its own memory, in RAM or swapped out; number of threads), or None if it is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pairs = (line.partition(":") for line in lines)
        facts = {name: int(value.split()[0]) for name, _, value in pairs if name in _KEPT}
        return 1024 * (facts["RssAnon"] + facts["RssShmem"] + facts.get("VmSwap", 0)), facts["Threads"]
    except (OSError, ValueError, KeyError, IndexError):  # it has ended
        return None


def default_budget_bytes() -> int:
    """Half of the memory of the machine or container."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _GROUP_LIMITS:
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return min(sizes) // 2
