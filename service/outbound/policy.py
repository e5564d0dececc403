"""Which URLs of clients the service may open: none unless configured."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ParsedUrl:
    """Of the one parser that all requests use. ``host`` is lower case ASCII, without brackets and trailing dot."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, as sent

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == {"https": 443, "http": 80}[self.scheme]
        return f"{self.scheme}://{host}{'' if is_default else f':{self.port}'}{self.target}"


@dataclass(frozen=True)
class UrlPolicy:
    """``hosts``: exact names, ``*.example.com`` for names below one, or ``*`` for every public host; empty: no URL.

    ``private_networks`` may be reached although they are not public; ``allow_http`` accepts http:// for them.
    """

    hosts: tuple[str, ...] = ()
    private_networks: tuple[Network, ...] = ()
    allow_http: bool = False

    def check(self, url: str) -> ParsedUrl:
        """Without a look-up of the name. Raises UrlRefused."""
        raise NotImplementedError
