"""The one parser of URLs that the service opens.

Attacks on such services live from two parsers that read one URL differently, so everything is refused that another
parser could read in another way (RFC 3986, and the WHATWG's URL standard where it repairs what is malformed).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from vidlex.service.bounds import MAX_URL_CHARS
from vidlex.service.errors import UrlRefused
from vidlex.service.outbound.addresses import Address

DEFAULT_PORTS = {"https": 443, "http": 80}
_MAX_HOST_CHARS = 253
# Above 1023, those that browsers refuse because they are of another protocol (WHATWG Fetch, "bad port").
_OTHER_PROTOCOLS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6679, 6697, 10080, *range(6665, 6670)}
)
_URL = re.compile(
    r"(?P<scheme>[A-Za-z]+)://(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,254}))"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<target>(?:[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?)"
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class ParsedUrl:
    """``host`` is lower case ASCII, without brackets and trailing dot."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, as sent

    @property
    def address(self) -> Address | None:
        """None if the host is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(url: str) -> ParsedUrl:
    """Raises UrlRefused."""
    if len(url) > MAX_URL_CHARS:
        raise UrlRefused(f"The URL has more than {MAX_URL_CHARS} characters")
    if not url.isascii():
        raise UrlRefused("The URL is not ASCII: write its host as xn--..., and encode its path with %")
    if "#" in url:
        raise UrlRefused("The URL has a fragment (#)")
    match = _URL.fullmatch(url)
    if match is None:
        raise UrlRefused(
            "The URL is not of the form https://HOST[:PORT]/PATH[?QUERY], with its special characters as %XX"
        )
    scheme = match["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise UrlRefused("The URL is not of https")
    host = _parse_address6(match["v6"]) if match["v6"] else _parse_name(match["name"].lower())
    port = int(match["port"]) if match["port"] else DEFAULT_PORTS[scheme]
    if port not in DEFAULT_PORTS.values() and (not 1024 <= port <= 65_535 or port in _OTHER_PROTOCOLS):
        raise UrlRefused("The URL's port is none of 443, 80, and those above 1023 that are of no other protocol")
    target = match["target"]
    return ParsedUrl(scheme, host, port, target if target.startswith("/") else f"/{target}")


def follow(base: ParsedUrl, location: bytes) -> ParsedUrl:
    """Where a redirect leads. Raises UrlRefused."""
    text = "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in location).partition("#")[0]
    origin = f"{base.scheme}://{base.authority}"
    path = base.target.partition("?")[0]
    if _ABSOLUTE.match(text):
        return parse_url(text)
    if text.startswith("//"):
        return parse_url(f"{base.scheme}:{text}")
    if text.startswith("/"):
        return parse_url(origin + text)
    if text.startswith("?"):
        return parse_url(origin + path + text)
    return parse_url(origin + path[: path.rindex("/") + 1] + text)


def _parse_name(text: str) -> str:
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1] or (labels[-2] if len(labels) > 1 else "")):
        # An IPv4 address to some parsers: only its usual form is one to all of them.
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise UrlRefused("The URL's host is neither a name nor an IPv4 address in its usual form") from None
    name = text.removesuffix(".")
    if len(name) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise UrlRefused("The URL's host is no name of the DNS")
    return name


def _parse_address6(text: str) -> str:
    try:
        address = str(ipaddress.IPv6Address(text))
    except ValueError:
        address = ""
    if address != text.lower():
        raise UrlRefused("The URL's host is no IPv6 address in its usual form (RFC 5952)")
    return address
