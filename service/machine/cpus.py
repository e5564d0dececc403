"""How many CPUs this process may use: those it may run on, and its cgroup's quota (``docker run --cpus``).

``os.cpu_count`` gives the host's cores. A container with a quota of two on a host with 64 would start 64 threads, which
the kernel stops for most of each period.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

THREADS_VARIABLE = "OMP_NUM_THREADS"  # read by torch, faiss and BLAS when they are loaded


@cache
def num_cpus() -> int:
    quota = cpu_quota()
    return visible_cpus() if quota is None else max(1, min(visible_cpus(), math.ceil(quota)))


def visible_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_library_threads() -> None:
    """To be called before torch and faiss are imported. Without a quota their own defaults stay, which know the cores
    from hyper-threads."""
    if num_cpus() < visible_cpus():
        os.environ.setdefault(THREADS_VARIABLE, str(num_cpus()))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs per period, the smallest of this process's cgroup and those above it; None: unlimited or unknown.

    cgroup v2 (``cpu.max``) and v1 (``cpu.cfs_quota_us``). In a container the path of /proc/self/cgroup may be the
    host's, while the container's own cgroup is mounted at the top: folders that do not exist are passed over.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            tops, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            tops, read = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"), _quota_v1
        else:
            continue
        for top in tops:
            found += [quota for folder in _upwards(root / top, path) if (quota := read(folder)) is not None]
    return min(found, default=None)


def _upwards(top: Path, path: str) -> Iterator[Path]:
    inner = PurePosixPath(path.lstrip("/"))
    if ".." not in inner.parts:
        yield from (top / part for part in (inner, *inner.parents))


def _quota_v2(folder: Path) -> float | None:
    return _ratio((_text(folder / "cpu.max") or "max").split())


def _quota_v1(folder: Path) -> float | None:
    return _ratio([_text(folder / "cpu.cfs_quota_us") or "-1", _text(folder / "cpu.cfs_period_us") or "0"])


def _ratio(words: list[str]) -> float | None:
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max 100000"
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
