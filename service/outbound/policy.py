"""Which URLs of clients the service may open: none unless configured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vidlex.service.bounds import URL_HOST_PATTERN
from vidlex.service.errors import UrlRefused
from vidlex.service.outbound.addresses import Address, Network, is_public, lies_in, parse_networks
from vidlex.service.outbound.urls import ParsedUrl, parse_url

_PATTERN = re.compile(URL_HOST_PATTERN)
# One sentence for all that is not public, and for names without an address: the answer must not be a map of the inner
# network and its names.
_NOT_PUBLIC = "The URL's host leads to no address that the service may connect to"


@dataclass(frozen=True)
class UrlPolicy:
    """``hosts``: exact names, ``*.example.com`` for names below one, or ``*`` for every public host; empty: no URL.

    ``private_networks`` may be reached although they are not public; ``allow_http`` accepts http:// for them. Raises
    ValueError for a host that is none.
    """

    hosts: tuple[str, ...] = ()
    private_networks: tuple[Network, ...] = ()
    allow_http: bool = False

    def __post_init__(self) -> None:
        hosts = tuple(host.strip().lower().strip("[]").removesuffix(".") for host in self.hosts)
        for host in hosts:
            if not _PATTERN.fullmatch(host):
                raise ValueError(f"{host!r} is neither a host, nor *.HOST, nor *")
        object.__setattr__(self, "hosts", hosts)

    @classmethod
    def configured(cls, hosts: Iterable[str], private_networks: Iterable[str]) -> UrlPolicy:
        """http:// is accepted for private networks. Raises ValueError."""
        networks = parse_networks(private_networks)
        return cls(tuple(hosts), networks, allow_http=bool(networks))

    def check(self, url: str) -> ParsedUrl:
        """Without a look-up of the name. Raises UrlRefused."""
        return self.check_parsed(parse_url(url))

    def check_parsed(self, url: ParsedUrl) -> ParsedUrl:
        if not self.hosts:
            raise UrlRefused("This service is not configured to open URLs")
        if not any(_matches(url.host, pattern) for pattern in self.hosts):
            raise UrlRefused("The URL's host is none of those that this service is configured to open")
        if url.scheme == "http" and not (self.allow_http and self.private_networks):
            raise UrlRefused("The URL is not of https")
        if url.address is not None:
            self.check_addresses(url, [url.address])
        return url

    def check_addresses(self, url: ParsedUrl, addresses: Sequence[Address]) -> None:
        """Of the host of a checked URL. One that is refused is enough. Raises UrlRefused."""
        is_private = [lies_in(address, self.private_networks) for address in addresses]
        is_open = [private or is_public(address) for private, address in zip(is_private, addresses, strict=True)]
        if not addresses or not all(is_open):
            raise UrlRefused(_NOT_PUBLIC, internal=f"{url.host}: {', '.join(map(str, addresses)) or 'no address'}")
        if url.scheme == "http" and not all(is_private):
            raise UrlRefused("The URL is not of https")


def _matches(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
