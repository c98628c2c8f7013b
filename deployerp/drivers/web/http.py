"""Sending to URLs that users have given, without letting them reach what only the control plane can.

What is checked is what is connected to. Every attempt resolves the name, looks at every address, and then
asks for a connection to one of these addresses, never to a name: whether it is made anew or was kept from
an earlier attempt, it leads where this attempt has checked.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Self

import aiohttp
from yarl import URL

from deployerp.core.errors import AddressRefused, EndpointUnreachable
from deployerp.database.base import utc_now
from deployerp.drivers.web.urls import Address, Network, check_addresses, check_url, is_address

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_EXCERPT_BYTES = 4096
# The status is the answer; its body is for people only, and no receiver may hold us with it.
_EXCERPT_SECONDS = 2
_LONGEST_WAIT_SECONDS = 86_400
# Long enough for a burst of events. Receivers close what is idle, few of them sooner than this.
_KEPT_SECONDS = 2
# Their own, because a name server that stalls must not hold the threads that call clouds.
_threads = ThreadPoolExecutor(32, thread_name_prefix="webhook-names")
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(frozen=True)
class Answer:
    """What a receiver answered: the first 4 KiB of its body as text, `retry_after` in seconds."""

    status: int
    excerpt: str
    duration_ms: int
    retry_after: float | None = None


class WebhookSender:
    """Sends POSTs to URLs that users have given.

    `allowed_networks` are an operator's and the only ones that need not be public; `timeout` is in
    seconds, for everything up to the status line. `resolve` turns a host name and port into addresses,
    `tls` replaces the system's authorities.

    Connections are kept for the next attempt as long as one is under way or somebody holds the sender
    (`async with sender`), and are gone with the last of them.
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
        self._holders = 0
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        if not self._holders:
            self._session = _session(self._tls)
        self._holders += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._holders -= 1
        if not self._holders:
            await self._session.close()

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends `body` and returns the answer, whatever its status; redirects are not followed.

        `headers` are sent as they are, but for `Host`: whoever takes some from users has checked them.
        Raises AddressRefused when the URL must not be called, EndpointUnreachable when nobody answered.
        """
        started = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            target = URL(check_url(url))
        except ValueError as error:
            raise AddressRefused(f"The endpoint's URL {error}.") from None
        try:
            async with self:
                async with asyncio.timeout_at(deadline):
                    addresses = await self._checked_addresses(target)
                    response = await self._post(target, addresses, body, headers)
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
            found = [host] if is_address(host) else await self._resolve(host, port)
            addresses = [ip_address(each) for each in found]
        except (OSError, ValueError):
            addresses = []
        if not addresses:
            raise EndpointUnreachable(f"The name {host} has no address: check the endpoint's URL.")
        check_addresses(host, addresses, self._allowed_networks)
        return addresses

    async def _post(
        self, target: URL, addresses: Sequence[Address], body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Sends to the first of the addresses that takes the connection; each has its share of the time."""
        post = partial(
            self._session.post,
            data=body,
            headers={**headers, "Host": target.host_port_subcomponent or ""},
            # Also without TLS: connections are kept apart by this name and the address.
            server_hostname=target.raw_host,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(sock_connect=self._timeout / len(addresses)),
        )
        *others, last = (target.with_host(str(address)) for address in addresses)
        for url in others:
            with suppress(*_NOT_CONNECTED):
                return await _posted(post, url)
        return await _posted(post, last)


async def _posted(post: Callable[..., Awaitable[aiohttp.ClientResponse]], url: URL) -> aiohttp.ClientResponse:
    """Posts, and again when a kept connection fails: its receiver may have closed it before the message."""
    while True:
        connection = _Connection()
        try:
            return await post(url, trace_request_ctx=connection)
        except aiohttp.ClientConnectionError:
            if not connection.kept:
                raise


@dataclass
class _Connection:
    """What has to be known of the connection that a request was given."""

    kept: bool = False


def _session(tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(_note_kept)
    return aiohttp.ClientSession(
        # One receiver that is slow must not keep others waiting for a connection: no limit.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(),
        cookie_jar=aiohttp.DummyCookieJar(),
        # A compressed body could be of any size once it is opened.
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "deployERP"},
        trust_env=False,
        trace_configs=[traces],
    )


async def _note_kept(_session: aiohttp.ClientSession, context: SimpleNamespace, _: object) -> None:
    context.trace_request_ctx.kept = True


async def _resolve(host: str, port: int) -> Sequence[str]:
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_threads, lookup)
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
