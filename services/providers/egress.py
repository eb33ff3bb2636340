"""The egress guard: providers name the URLs that we call, so none may lead into our own network.

`check_url` reads a URL as written, `resolve` judges every address that DNS gives, and the transport
dials just those addresses, never the name again: a name that changes its answer between the check
and the call changes nothing. Redirects are not followed at all.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses as text; raises OSError."""

LOOPBACK = "127.0.0.0/8,::1/128"

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
_METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200", "168.63.129.16"))
)
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62}\.?)+", re.ASCII)
# What inet_aton takes for an address although ipaddress does not: 0x7f.1, 017700000001, 127.1.
_NUMERIC_HOST = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?")
_LOCAL_NAMES = ("localhost", "local", "internal", "localdomain", "home.arpa")
_AUTHORITY = re.compile(r"[^:/?#]*:?/*([^/?#]*).*", re.DOTALL)
_URL_MAX = 2_048


class EgressRefused(OSError):
    """A URL or an address that this process does not call. The message may be shown."""


class Guard:
    """Decides which URLs and addresses may be called.

    `allow` lists networks, comma-separated, that may be called although they are not public; a
    name below one's own domain (`localhost`, `*.internal`) may then be resolved as well.
    """

    def __init__(self, allow: str = "", lookup: Lookup | None = None) -> None:
        self._lookup = lookup or system_lookup
        self._allowed: list[Network] = [
            ipaddress.ip_network(network.strip()) for network in allow.split(",") if network.strip()
        ]

    def check_url(self, url: str) -> httpx.URL:
        """Return the URL parsed, or raise EgressRefused with what is wrong with it."""
        if len(url) > _URL_MAX:
            raise EgressRefused("the URL is too long")
        if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
            raise EgressRefused("the URL contains a space or a control character")
        if "\\" in url:
            raise EgressRefused("the URL contains a backslash")
        if "@" in _AUTHORITY.sub(r"\1", url):
            raise EgressRefused("the URL must not contain credentials")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise EgressRefused("the URL cannot be read") from None
        self.check(parsed)
        if parsed.fragment:
            raise EgressRefused("the URL must not have a fragment")
        return parsed

    def check(self, url: httpx.URL) -> None:
        """Judge a URL that is already parsed."""
        if url.scheme not in ("http", "https"):
            raise EgressRefused("only http and https URLs are called")
        if url.userinfo:
            raise EgressRefused("the URL must not contain credentials")
        host = url.host.lower()
        if not host:
            raise EgressRefused("the URL names no host")
        if url.port is not None and not 0 < url.port < 65_536:
            raise EgressRefused("the URL's port is out of range")
        literal = _literal(host)
        if literal is not None:
            self.check_address(literal)
            return
        if _NUMERIC_HOST.fullmatch(host):
            raise EgressRefused("the host is an IP address in an unusual spelling")
        if not _HOST.fullmatch(url.raw_host.decode("ascii", "replace").lower()):
            raise EgressRefused("the host is not a valid name")
        labels = host.rstrip(".")
        if not self._allowed and (
            "." not in labels
            or any(labels == name or labels.endswith(f".{name}") for name in _LOCAL_NAMES)
        ):
            raise EgressRefused("the host is not a public name")

    def check_address(self, address: Address) -> None:
        """Raise EgressRefused unless the address is public, or allowed by the operator."""
        inner = _inner(address)
        if any(
            candidate in network
            for candidate in {address, inner}
            for network in self._allowed
            if network.version == candidate.version
        ):
            return
        if not _public(inner) or (inner is address and not _public(address)):
            raise EgressRefused("the address is not public")

    async def resolve(self, host: str, port: int) -> list[tuple[str, int]]:
        """Return the addresses of a host that may be dialled.

        Raises EgressRefused if there are some and none may be, OSError if the name has none.
        """
        literal = _literal(host)
        if literal is not None:
            self.check_address(literal)
            return [(str(literal), port)]
        found = await self._lookup(host, port)
        permitted = []
        for address in found:
            try:
                self.check_address(ipaddress.ip_address(address.partition("%")[0]))
            except EgressRefused:
                continue
            permitted.append((address, port))
        if found and not permitted:
            raise EgressRefused("the host's addresses are not public")
        return permitted


async def system_lookup(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 form leads to, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _public(address: Address) -> bool:
    if address in _METADATA or (address.version == 6 and address in _NAT64_LOCAL):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)
    )
