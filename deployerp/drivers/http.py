"""Sending to URLs that users have given, without letting them reach what only the control plane can.

What is checked is what is connected to: the name is resolved once, every address is looked at, and the
connection is made to those addresses and no others. An attempt keeps nothing for the next one.
"""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from deployerp.domain.base import utc_now
from deployerp.domain.errors import AddressRefused, EndpointUnreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

log = structlog.get_logger()
_EXCERPT_BYTES = 4096
# The status is the answer; its body is for people only, and no receiver may hold us with it.
_EXCERPT_SECONDS = 2
_LONGEST_WAIT_SECONDS = 86_400

_LONGEST_URL = 2048
# No spaces, controls, backslashes or look-alike letters: every parser then sees the same host.
_URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# How the C library recognises the numbers of which it would make an address: 127.1, 0x7f000001, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

# The special-purpose registries of IANA (RFC 6890 and what followed it), multicast, and Azure's metadata
# service, which is the one that hides behind a public address.
_NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_IPV6 = IPv6Network("2000::/3")
# Inside the public block: protocol assignments with Teredo, documentation, 6to4 (an IPv4 address in
# disguise, and obsolete), documentation again.
_NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Answer:
    """What a receiver answered: the first 4 KiB of its body as text, `retry_after` in seconds."""

    status: int
    excerpt: str
    duration_ms: int
    retry_after: float | None = None


def check_url(url: str) -> str:
    """The rule that a receiver's URL keeps to by its form alone; returns it as it is.

    Raises ValueError, so that a schema can use it as a validator. Where the URL leads is checked when it
    is used, since names can change their addresses.
    """
    if len(url) > _LONGEST_URL:
        raise ValueError(f"must have at most {_LONGEST_URL} characters")
    if not _URL_CHARACTERS.fullmatch(url):
        raise ValueError("must be plain ASCII: write an international name in its xn-- form")
    try:
        parsed = URL(url)
    except ValueError:
        raise ValueError("must be a URL such as https://example.com/webhooks") from None
    if parsed.scheme not in ("http", "https"):
        raise ValueError("must begin with https:// or http://")
    if parsed.user is not None or parsed.password is not None:
        raise ValueError("must not hold a user name or password: the signature tells who sends")
    if parsed.raw_fragment:
        raise ValueError("must not have a fragment (#...)")
    if parsed.port == 0:
        raise ValueError("must not use port 0")
    _check_host(parsed.raw_host or "", bracketed=url.partition("//")[2].startswith("["))
    return url


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed:
        if not _is_address(host) or "%" in host:
            raise ValueError("must have a valid IPv6 address in its brackets, without a zone")
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("must have a host name such as example.com")
    if _NUMBER.fullmatch(labels[-1]) and not _is_address(host):
        raise ValueError("must write an IPv4 address as four decimal numbers")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach the address, so that we give nothing away by calling it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_IPV6 and not any(address in network for network in _NOT_PUBLIC_IPV6)


class WebhookSender:
    """Sends one POST at a time to a URL that a user has given.

    `allowed_networks` are an operator's and the only ones that need not be public; `timeout` is in
    seconds, for everything up to the status line. `resolve` turns a host name and port into addresses,
    `tls` replaces the system's authorities.
    """

    def __init__(
        self,
        allowed_networks: Sequence[Network] = (),
        timeout: float = 15,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed_networks = tuple(allowed_networks)
        self._timeout = timeout
        self._resolve = resolve or _resolve
        self._tls = tls

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends `body` and returns the answer, whatever its status; redirects are not followed.

        Raises AddressRefused when the URL must not be called, EndpointUnreachable when nobody answered.
        """
        started = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            target = URL(check_url(url))
        except ValueError as error:
            raise AddressRefused(f"The endpoint's URL {error}.") from None
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._checked_addresses(target)
            async with self._session(addresses) as session:
                async with asyncio.timeout_at(deadline):
                    response = await session.post(target, data=body, headers=headers, allow_redirects=False)
                duration_ms = round((time.perf_counter() - started) * 1000)
                with closing(response):
                    excerpt = await _excerpt(response)
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointUnreachable(_in_words(error, self._timeout)) from None
        retry_after = retry_after_of(response.headers.get("Retry-After"), utc_now())
        return Answer(response.status, excerpt, duration_ms, retry_after)

    async def _checked_addresses(self, target: URL) -> Sequence[Address]:
        host, port = target.raw_host or "", target.port or 0
        try:
            found = [host] if _is_address(host) else await self._resolve(host, port)
            addresses = [ip_address(each) for each in found]
        except (OSError, ValueError):
            addresses = []
        if not addresses:
            raise EndpointUnreachable(f"The name {host} has no address: check the endpoint's URL.")
        refused = [address for address in addresses if not self._may_be_called(address)]
        if refused:
            # The address is the operator's business: it would tell a user what the inner network is like.
            log.warning("address refused", host=host, addresses=[str(address) for address in refused])
            raise AddressRefused(
                f"{host} leads to an address that is not public, and nothing was sent: use a public address,"
                " or let the operator add its network to DEPLOYERP_WEBHOOK_ALLOWED_NETWORKS."
            )
        return addresses

    def _may_be_called(self, address: Address) -> bool:
        # The kernel treats a mapped address as the IPv4 address in it; a NAT64 gateway has its own idea.
        plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
        return any(plain in network for network in self._allowed_networks) or is_public(address)

    def _session(self, addresses: Sequence[Address]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Checked(addresses), use_dns_cache=False, force_close=True, ssl=self._tls or True
            ),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            # A compressed body could be of any size once it is opened.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "deployERP"},
            trust_env=False,
        )


class _Checked(AbstractResolver):
    """Answers with the addresses that have been checked, whatever a name server would say by now."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


async def _excerpt(response: aiohttp.ClientResponse) -> str:
    read = bytearray()
    with suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_EXCERPT_SECONDS):
            while chunk := await response.content.read(_EXCERPT_BYTES - len(read)):
                read += chunk
    # PostgreSQL's text has no place for NUL.
    return read.decode(errors="replace").replace("\0", "�")


def retry_after_of(value: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, at most a day; None when it is not clear."""
    if value is None:
        return None
    try:
        seconds = float(int(value)) if value.isdigit() else _seconds_until(value, now)
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)


def _seconds_until(date: str, now: datetime) -> float:
    time = parsedate_to_datetime(date)
    return (time.replace(tzinfo=time.tzinfo or UTC) - now).total_seconds()


# The most specific first.
_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "The receiver's certificate does not hold for its name: install one from a public authority.",
    ),
    (aiohttp.ClientSSLError, "TLS failed: check that the receiver speaks HTTPS on this port."),
    (
        aiohttp.ClientConnectorError,
        "No connection: check that the receiver runs and that its firewall lets deployERP in.",
    ),
    (TimeoutError, "No answer within {timeout:g} s: answer first, then work."),
    (Exception, "The receiver broke off without an HTTP answer: look at its log."),
)


def _in_words(error: Exception, timeout: float) -> str:
    return next(words for kind, words in _FAILURES if isinstance(error, kind)).format(timeout=timeout)
