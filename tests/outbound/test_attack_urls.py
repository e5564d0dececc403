"""URLs of attackers: what other parsers read in several ways, and addresses that are not public."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import httpx
import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import parse_url as urllib3_url

from vidlex.service.bounds import MAX_URL_CHARS
from vidlex.service.errors import UrlRefused
from vidlex.service.outbound.addresses import is_public, lies_in, parse_networks
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.urls import follow, parse_url

ANY = UrlPolicy(hosts=("*",))

MALFORMED = [
    # other forms of 127.0.0.1 and 169.254.169.254
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0177.0000.0000.0001/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.01/",
    "https://127.0.0.1./",
    "https://127.0.0.0x1/",
    "https://127.0.0.1.1/",
    "https://256.256.256.256/",
    "https://0/",
    "https://2852039166/",
    "https://0xa9fea9fe/",
    "https://0xA9.0xFE.0xA9.0xFE/",
    "https://169.254.43518/",
    "https://425.510.425.510/",
    "https://example.0x7f/",
    "https://1.1.1.1.in-addr.1/",
    # characters that some parsers remove, decode or take for others
    "https://127。0。0。1/",
    "https://127．0．0．1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://１２７.0.0.1/",
    "https://exa\u00admple.com/",
    "https://ex\u200bample.com/",
    "https://faß.de/",
    "https://ｅxample.com/",
    "https://example.com\u2044evil.com/",
    "https://example.com／evil.com/",
    "https://example.com＠evil.com/",
    "https://ℂ.example/",
    "https://example.com\\@127.0.0.1/",
    "https://127.0.0.1\\@example.com/",
    "https:\\\\example.com/",
    "https:/\\example.com/",
    "https://example.com/\\..\\x",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://@example.com/",
    "https://:@example.com/",
    "https://example.com:443@127.0.0.1/",
    "https://example.com@127.0.0.1:443/",
    "https://example.com%40127.0.0.1/",
    "https://example.com%2f@127.0.0.1/",
    "https://%31%32%37.0.0.1/",
    "https://127.0.0.1%2eexample.com/",
    "https://example%00.com/",
    "https://example.com%0d%0aHost:%20evil/",
    "https://exam\tple.com/",
    "ht\ttps://example.com/",
    "https://example.com/\tx",
    "https://exam\nple.com/",
    "https://example.com/\r\nHost: evil",
    "https://example.com/ HTTP/1.1",
    " https://example.com/",
    "https://example.com/\n",
    "https://example.com/ ",
    "\x00https://example.com/",
    "https://example.com/\x00",
    "https://example.com/\x7f",
    "https://example.com/\u2028",
    "https://example.com#@127.0.0.1/",
    "https://example.com/#",
    "https://example.com/a#b",
    "https://127.0.0.1#.example.com/",
    "https://example.com;127.0.0.1/",
    "https://example.com&@127.0.0.1/",
    "https://example.com,127.0.0.1/",
    "https://*.example.com/",
    'https://example.com/"',
    "https://example.com/<>",
    "https://example.com/{x}",
    "https://example.com/%",
    "https://example.com/%zz",
    "https://example.com/%u0041",
    # other forms of URLs
    "",
    "https",
    "https:",
    "https://",
    "https:///x",
    "https:example.com",
    "https:/example.com/",
    "https:///example.com/",
    "//example.com/",
    "/etc/passwd",
    "example.com",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://example.com/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stats",
    "data:text/plain,x",
    "jar:https://example.com/!/",
    "s3://bucket/key",
    "unix:///run/valkey.sock",
    "https+unix://%2Frun%2Fx/",
    "view-source:https://example.com/",
    "wss://example.com/",
    # names
    "https://./",
    "https://.example.com/",
    "https://example..com/",
    "https://example.com../",
    "https://-example.com/",
    "https://example-.com/",
    f"https://{'a' * 64}.com/",
    f"https://{'a.' * 130}com/",
    # IPv6
    "https://::1/",
    "https://[::1/",
    "https://::1]/",
    "https://[]/",
    "https://[127.0.0.1]/",
    "https://[example.com]/",
    "https://[::1]example.com/",
    "https://example.com[::1]/",
    "https://[fe80::1%eth0]/",
    "https://[fe80::1%25eth0]/",
    "https://[2606:4700::1111%251]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::0001]/",
    "https://[2606:4700:0:0:0:0:0:1111]/",
    "https://[::ffff:0x7f.0.0.1]/",
    "https://[v1.x]/",
    # ports
    "https://example.com:/",
    "https://example.com:0/",
    "https://example.com:00443/",
    "https://example.com:0443/",
    "https://example.com:65536/",
    "https://example.com:99999999/",
    "https://example.com:-1/",
    "https://example.com:+443/",
    "https://example.com:4 43/",
    "https://example.com:443:80/",
    "https://example.com:٤٤٣/",
    "https://example.com:0x1bb/",
    "https://example.com:22/",
    "https://example.com:25/",
    "https://example.com:53/",
    "https://example.com:2049/",
    "https://example.com:6667/",
    f"https://example.com/{'a' * MAX_URL_CHARS}",
]

NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::7f00:1", "::a9fe:a9fe", "::ffff:7f00:1", "::ffff:101:101", "::ffff:0:7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1", "100:0:0:1::1", "1::1", "2001::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("2002:7f00:1::", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"),
    *("3ffe::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fec0::1"),
    *("ff02::1", "ff0e::1"),
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.0.1",
    "172.32.0.1",
    "192.167.0.1",
    "223.255.0.1",
]
PUBLIC += ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "2620:0:2d0:200::7"]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_can_be_read_in_several_ways_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        ANY.check(url)
    assert "127" not in str(refused.value)  # says why, and repeats nothing


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_refused(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not is_public(address)
    with pytest.raises(UrlRefused, match="leads to no address"):
        ANY.check_addresses(parse_url("https://example.com/"), [address])
    with pytest.raises(UrlRefused):
        ANY.check(f"https://[{text}]/" if ":" in text else f"https://{text}/")


def test_refused_addresses_look_like_names_without_one() -> None:
    url = parse_url("https://example.com/")
    said = set()
    for addresses in ([], [ipaddress.ip_address("10.0.0.1")], [ipaddress.ip_address("fe80::1")]):
        with pytest.raises(UrlRefused) as refused:
            ANY.check_addresses(url, addresses)
        said.add(str(refused.value))
    with pytest.raises(UrlRefused) as refused:
        ANY.check("https://169.254.169.254/")
    assert said == {str(refused.value)}


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    url = ANY.check(f"https://[{text}]/x" if ":" in text else f"https://{text}/x")
    assert url.host == text
    ANY.check_addresses(parse_url("https://example.com/"), [ipaddress.ip_address(text)])


def test_everything_that_python_calls_special_is_refused() -> None:
    for step in range(0, 2**32, 65_521 * 16):
        address = ipaddress.IPv4Address(step)
        if is_public(address):
            assert address.is_global and not address.is_multicast and not address.is_reserved, address


@pytest.mark.parametrize("others", [["1.1.1.1"], ["1.1.1.1", "2606:4700::1"]])
def test_one_refused_address_among_public_ones_is_enough(others: list[str]) -> None:
    addresses = [ipaddress.ip_address(text) for text in [*others, "10.0.0.1"]]
    with pytest.raises(UrlRefused):
        ANY.check_addresses(parse_url("https://example.com/"), addresses)


def test_private_networks_are_reached_over_http_too_and_others_are_not() -> None:
    policy = UrlPolicy.configured(["*"], ["10.1.0.0/16", "fd00:1::/32"])
    assert policy.check("http://10.1.2.3:8080/x").port == 8080
    assert policy.check("http://[fd00:1::5]/x").host == "fd00:1::5"
    name = policy.check("http://media.internal/x")  # its address decides
    policy.check_addresses(name, [ipaddress.ip_address("10.1.2.3")])
    for address in ("1.1.1.1", "10.2.0.1"):
        with pytest.raises(UrlRefused):
            policy.check_addresses(name, [ipaddress.ip_address(address)])
        with pytest.raises(UrlRefused):
            policy.check(f"http://{address}/")
    with pytest.raises(UrlRefused):  # one network by IPv4 is not opened for its v4-mapped form
        policy.check("https://[::ffff:a01:203]/")
    assert not lies_in(ipaddress.ip_address("fe80::1%eth0"), parse_networks(["fe80::/10"]))
    with pytest.raises(UrlRefused, match="https"):
        UrlPolicy(hosts=("*",)).check("http://example.com/")


def test_hosts_are_exact_or_below_a_name() -> None:
    policy = UrlPolicy(hosts=("media.example.com", "*.cdn.example", "1.1.1.1", "Upper.Example."))
    for url in (
        "https://media.example.com/",
        "https://MEDIA.example.com./",
        "https://a.cdn.example/",
        "https://1.1.1.1/",
    ):
        policy.check(url)
    assert policy.check("https://upper.example:8443/a?b").text == "https://upper.example:8443/a?b"
    for host in (
        "example.com",
        "x.media.example.com",
        "cdn.example",
        "evilcdn.example",
        "media.example.com.evil",
        "8.8.8.8",
    ):
        with pytest.raises(UrlRefused, match="none of those"):
            policy.check(f"https://{host}/")
    with pytest.raises(UrlRefused, match="not configured"):
        UrlPolicy().check("https://example.com/")


@pytest.mark.parametrize("hosts", [["https://x"], ["a b"], ["**"], ["*x"], [""], ["a/b"], ["x:443"], ["*.*.x"]])
def test_hosts_that_are_none_stop_the_start(hosts: list[str]) -> None:
    with pytest.raises(ValueError, match="neither a host"):
        UrlPolicy.configured(hosts, [])


@pytest.mark.parametrize("network", ["10.0.0.1/8", "x", "10.0.0.0/33", "10/8"])
def test_networks_that_are_none_stop_the_start(network: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        UrlPolicy.configured(["*"], [network])


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        (b"https://b.example/y", "https://b.example/y"),
        (b"//b.example/y", "https://b.example/y"),
        (b"/y?z", "https://a.example/y?z"),
        (b"y", "https://a.example/p/y"),
        (b"../y", "https://a.example/p/../y"),
        (b"?z", "https://a.example/p/x?z"),
        (b"/y#part", "https://a.example/y"),
        ("/\u00fc".encode(), "https://a.example/%C3%BC"),
    ],
)
def test_redirects_lead_where_their_location_says(location: bytes, leads_to: str) -> None:
    assert follow(parse_url("https://a.example/p/x?q"), location).text == leads_to


@pytest.mark.parametrize(
    "location", [b"\\\\evil.example/", b"///evil.example", b"//u@b.example/", b"javascript:1", b"a b"]
)
def test_malformed_redirects_are_refused(location: bytes) -> None:
    with pytest.raises(UrlRefused):
        follow(parse_url("https://a.example/p/x"), location)


_WILD = st.text(alphabet="ab.:/@\\?#%[]0127x-_~ \t\u00df\u3002", max_size=40)
_PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            (
                *("https://", "http://", "example.com", "127.0.0.1", "1.1.1.1", "[::1]", "[2606:4700::1]", "@", ":"),
                *("443", "8443", "/", "?", "#", "\\", "..", ".", "%2e", "%40", "a", "xn--", "0x7f", "\t", "user"),
            )
        ),
        _WILD,
    ),
    max_size=8,
).map("".join)


@given(st.one_of(_WILD.map(lambda text: f"https://{text}"), _PIECES.map(lambda text: f"https://{text}"), _PIECES))
def test_what_is_accepted_has_one_reading(url: str) -> None:
    policy = UrlPolicy.configured(["*"], ["0.0.0.0/0", "::/0"])
    try:
        parsed = policy.check(url)
    except UrlRefused:
        return
    for text in (url, parsed.text):
        by_urllib, by_httpx, by_yarl = urlsplit(text), httpx.URL(text), yarl.URL(text)
        assert (by_urllib.hostname or "").removesuffix(".") == parsed.host
        assert by_httpx.raw_host.decode().strip("[]").removesuffix(".") == parsed.host
        assert (by_yarl.raw_host or "").removesuffix(".") == parsed.host
        assert (urllib3_url(text).host or "").strip("[]").removesuffix(".") == parsed.host
        assert by_urllib.scheme == by_httpx.scheme == by_yarl.scheme == parsed.scheme
        default = {"https": 443, "http": 80}[parsed.scheme]
        assert parsed.port == (by_urllib.port or default) == (by_httpx.port or default) == by_yarl.port
        assert not (by_urllib.username or by_httpx.userinfo or by_yarl.user)
    assert policy.check(parsed.text) == parsed


def test_the_list_of_attacks_has_no_doubles() -> None:
    assert len(set(MALFORMED)) == len(MALFORMED) > 100
