"""Calls through `requests` to addresses that a tenant has given, under the rule that webhooks keep to.

libcloud opens its own connections, to the address in the credentials and to those that the answers name, such
as OpenStack's catalogue. What is checked is what is connected to: each new connection resolves the name,
looks at every address and connects to one of these.
"""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import requests
from libcloud.common.base import Connection
from libcloud.compute import base
from libcloud.http import LibcloudConnection
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from deployerp.core.errors import ProviderRefused
from deployerp.drivers.web.urls import Network, check_addresses

# Lists of a whole account are some megabytes; more is nobody's list.
MOST_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# For a whole exchange: the timeout of a socket starts again with each byte.
MOST_SECONDS = 120.0


class GuardedConnection(LibcloudConnection):
    """What libcloud sends with; `allowed_networks` are the only ones that need not be public.

    Raises AddressRefused for an address that must not be called, and ProviderRefused for a redirect and for
    an answer of more than 16 MiB, unpacked.
    """

    def __init__(self, *args: Any, allowed_networks: Sequence[Network] = (), **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        session: requests.Session = self.session  # type: ignore[assignment]
        # A proxy of the environment would connect for us, to addresses that nobody has checked.
        session.trust_env = False
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(allowed_networks))


def guard(driver: base.NodeDriver, allowed_networks: Sequence[Network]) -> base.NodeDriver:
    """Has every connection of a driver checked; those that it opens to sign in take after these."""
    for connection in vars(driver).values():
        if isinstance(connection, Connection):
            guarded = partial(GuardedConnection, allowed_networks=allowed_networks)
            connection.conn_class = guarded  # type: ignore[assignment]
    return driver


class _Adapter(HTTPAdapter):
    def __init__(self, allowed_networks: Sequence[Network]) -> None:
        self._allowed_networks = allowed_networks
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        pools: tuple[type[HTTPConnectionPool], ...] = (HTTPConnectionPool, HTTPSConnectionPool)
        self.poolmanager.pool_classes_by_scheme = {
            pool.scheme: self._guarded(pool) for pool in pools if pool.scheme
        }

    def _guarded(self, pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        kind = _HTTPSConnection if issubclass(pool, HTTPSConnectionPool) else _HTTPConnection
        connection = type(kind.__name__, (kind,), {"allowed_networks": self._allowed_networks})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        # A packed answer could be of any size once it is opened.
        request.headers["Accept-Encoding"] = "identity"
        options["stream"] = True
        response = super().send(request, *args, **options)
        try:
            if response.is_redirect:
                raise ProviderRefused(
                    "The provider's address redirects elsewhere: give the address that it leads to."
                )
            response._content = _bounded(response)  # noqa: SLF001 - what `content` returns
        finally:
            response.close()
            # Nothing is kept: what a connection may take of time is for one exchange.
            self.poolmanager.clear()
        return response


def _bounded(response: requests.Response) -> bytes:
    read = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        read += chunk
        if len(read) > MOST_BYTES:
            raise ProviderRefused(
                f"The provider's answer has more than {MOST_BYTES // 1024 // 1024} MiB:"
                " check the address in the credentials."
            )
    return bytes(read)


class _Checked(HTTPConnection):
    allowed_networks: Sequence[Network] = ()
    _deadline: threading.Timer | None = None

    def connect(self) -> None:
        super().connect()
        self._deadline = threading.Timer(MOST_SECONDS, _cut, [self.sock])
        self._deadline.daemon = True
        self._deadline.start()

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().close()

    def _new_conn(self) -> socket.socket:
        host: str = self._dns_host
        failure: OSError = OSError("the name has no address")
        for address in self._addresses(host):
            try:
                # Numbers only: nothing is looked up again.
                return socket.create_connection((address, self.port), timeout=self._seconds)
            except OSError as error:
                failure = error
        raise NewConnectionError(self, f"no connection: {failure.strerror or failure}") from failure

    def _addresses(self, host: str) -> list[str]:
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, "the name has no address") from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        check_addresses(host, [ip_address(each) for each in addresses], self.allowed_networks)
        return addresses

    @property
    def _seconds(self) -> float | None:
        return self.timeout if isinstance(self.timeout, int | float) else None


def _cut(connection: socket.socket) -> None:
    """Ends a connection under whoever reads from it: to the reader, the other side has closed it."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _HTTPConnection(_Checked):
    pass


class _HTTPSConnection(_Checked, HTTPSConnection):
    pass
