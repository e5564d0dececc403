"""Landlock: gives up all files, TCP, and signals and abstract sockets of other processes, as far as the kernel has it.

https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct

from vidlex.service.decode.isolation.syscalls import call

_VERSION = 1  # flag of landlock_create_ruleset
_FILES = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))  # (since which version of the interface, rights)
_TCP = 0b11  # bind and connect; since version 4
_SCOPES = 0b11  # abstract sockets and signals of processes outside; since version 6
_VERSION_OF_TCP, _VERSION_OF_SCOPES = 4, 6


def landlock_version() -> int:
    """Raises OSError without Landlock."""
    return call("landlock_create_ruleset", None, 0, _VERSION)


def give_up_access() -> int:
    """For the calling thread and those that it starts, for ever. The version of Landlock.

    Requires no_new_privs. Raises OSError.
    """
    version = landlock_version()
    files = sum(rights for since, rights in _FILES if version >= since)
    attributes = struct.pack("=Q", files)
    if version >= _VERSION_OF_TCP:
        attributes += struct.pack("=Q", _TCP)
    if version >= _VERSION_OF_SCOPES:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = call("landlock_create_ruleset", ctypes.create_string_buffer(attributes), len(attributes), 0)
    try:
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def lacks(version: int) -> list[str]:
    """What this version leaves open, and a later one does not."""
    older = []
    if version < _VERSION_OF_TCP:
        older.append(f"TCP (version {version})")
    if version < _VERSION_OF_SCOPES:
        older.append(f"signals and abstract sockets (version {version})")
    return [f"Landlock for {name}" for name in older]
