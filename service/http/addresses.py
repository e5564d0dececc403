"""Addresses of clients and proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_IPV6_PREFIX = 64  # what one customer of a provider usually gets


class TrustedProxies:
    """Addresses whose ``X-Forwarded-For`` is believed. ``texts`` are addresses or networks; raises ValueError."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._networks: tuple[_Network, ...] = tuple(ipaddress.ip_network(text) for text in texts)

    def __contains__(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


@lru_cache(4096)
def client_group(host: str) -> str:
    """What limits per address count: an IPv4 address, or the /64 of an IPv6 address, which one client can rotate in."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
