"""A locked process tries what it must not be able to do: the report says what happened, not what should."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable

from vidlex.service.decode.isolation.report import TARGETS, Target
from vidlex.service.decode.isolation.syscalls import call

_DISCARD_PORT = 9


def reachable_targets(service_pid: int, beacon: str) -> list[Target]:
    """Of all TARGETS those that this process can still get at; without Linux all.

    ``beacon`` is the address of an abstract datagram socket of the service, without its first byte.
    """
    if sys.platform != "linux":
        return list(TARGETS)
    tries: dict[Target, Callable[[int], bool]] = {
        "files": _opens_files,
        "network": _sends_datagrams,
        "sockets": lambda _: _finds_sockets(beacon),
        "signals": _sends_signals,
        "memory": _reads_memory,
        "processes": _forks,
        "system_calls": _calls_others,
    }
    return [name for name in TARGETS if tries[name](service_pid)]


def _opens_files(_: int) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(__file__, os.O_RDONLY))
        return True
    return False


def _sends_datagrams(_: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", _DISCARD_PORT))  # of a datagram socket: only finds a route
        return True
    return False


def _finds_sockets(beacon: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        if os.path.lexists(__file__):  # paths resolve, those of sockets too, which Landlock does not guard
            return True
        probe.connect(f"\0{beacon}")
        return True
    return False


def _sends_signals(service_pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(service_pid, 0)
        return True
    return False


def _reads_memory(service_pid: int) -> bool:
    target = ctypes.create_string_buffer(8)
    local = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(target), 1))
    remote = ctypes.create_string_buffer(struct.pack("PN", 0, 1))
    try:
        call("process_vm_readv", service_pid, local, 1, remote, 1, 0)
    except OSError as error:
        return error.errno == errno.EFAULT  # it looked, at an address where there is nothing
    return True


def _forks(_: int) -> bool:
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def _calls_others(_: int) -> bool:
    """getpgid, which is harmless and which decoding does not need."""
    with contextlib.suppress(OSError):
        os.getpgid(0)
        return True
    return False
