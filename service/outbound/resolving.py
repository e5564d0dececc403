"""Look-ups of names with a time limit."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from vidlex.service.errors import Overloaded
from vidlex.service.outbound.addresses import Address
from vidlex.service.outbound.limits import Limits

RESOLVE_SECONDS = 10.0
_PLACE_SECONDS = 2.0
_MAX_ADDRESSES = 16
# getaddrinfo cannot be interrupted: its thread stays until the system's resolver gives up.
_places = threading.BoundedSemaphore(128)

Resolve = Callable[[str, int], list[Address]]  # raises OSError


def system_resolve(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    texts = dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found)
    return [ipaddress.ip_address(text) for text in texts][:_MAX_ADDRESSES]


def resolve_within(resolve: Resolve, host: str, port: int, limits: Limits) -> list[Address]:
    """Empty if the name has no address, or none in time: the two must look the same.

    Raises FetchFailed, and Overloaded if too many look-ups hang.
    """
    found: list[Address] = []
    if not _places.acquire(timeout=limits.seconds_left(_PLACE_SECONDS)):
        raise Overloaded("Too many names are being looked up", limit="look_ups")
    has_ended = threading.Event()

    def look_up() -> None:
        try:
            found.extend(resolve(host, port))
        except (OSError, UnicodeError, ValueError):
            pass
        finally:
            _places.release()
            has_ended.set()

    try:
        threading.Thread(target=look_up, name="vidlex-resolve", daemon=True).start()
    except BaseException:
        _places.release()
        raise
    until = time.monotonic() + RESOLVE_SECONDS
    while not has_ended.wait(max(0.0, min(limits.poll_seconds, until - time.monotonic()))):
        limits.check()
        if time.monotonic() > until:
            return []
    return found
