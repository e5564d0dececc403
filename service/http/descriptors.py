"""File descriptors of this process."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_descriptor_limit(num_needed: int) -> int:
    """Raise the soft limit to ``num_needed``, or as far as the hard limit allows. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number_of(soft) < num_needed:
        with suppress(ValueError, OSError):  # macOS: the kernel's limit per process is lower than RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(num_needed, _number_of(hard)), hard))
    return _number_of(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _number_of(limit: int) -> int:
    return 2**31 - 1 if limit == resource.RLIM_INFINITY else limit
