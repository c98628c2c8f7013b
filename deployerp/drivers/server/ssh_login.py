"""Logging in to a server over SSH, and what kept us from it in words that tell the causes apart."""

import asyncio
import errno
import socket
from dataclasses import dataclass, field

import asyncssh

from deployerp.core.errors import HostAuthenticationFailed, HostKeyMismatch, HostUnreachable, UpstreamError
from deployerp.drivers.reasons import reason_of

_KEEPALIVE_SECONDS = 4
_KEEPALIVES_MISSED = 3
# AES in hardware moves images several times faster than the library's first choice.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
]
_VERSION = b"SSH-"
# What sshd sends in place of its version to a client that it does not let in for now.
_LIMITED = (b"Exceeded MaxStartups", b"Not allowed at this time")
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


@dataclass(frozen=True)
class HostTarget:
    """Where a server is, who we are there, and the one host key that proves it is that server.

    `private_key` is ours in OpenSSH's format; `host_key` is the server's public key, `ssh-ed25519 AAAA...`.
    """

    address: str
    port: int
    user: str
    private_key: str = field(repr=False)
    host_key: str

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"


async def log_in(target: HostTarget, timeout: float) -> asyncssh.SSHClientConnection:
    """A connection that is logged in, within `timeout` seconds.

    Raises HostUnreachable, HostKeyMismatch (before anything but the key exchange was sent) and
    HostAuthenticationFailed.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    connected = await _connect(target, deadline, timeout)
    try:
        await _await_version(target, connected, deadline, timeout)
    except BaseException:
        connected.close()
        raise
    return await _authenticate(target, connected, deadline, timeout)


def unreachable(message: str, reason: Exception | None = None) -> HostUnreachable:
    return HostUnreachable(message, details={"reason": reason_of(reason)} if reason else None)


def connection_lost(target: HostTarget, doing: str, reason: Exception | None = None) -> HostUnreachable:
    return unreachable(
        f"The SSH connection to the server at {target.place} was lost while {doing}: check that it runs.",
        reason,
    )


async def _connect(target: HostTarget, deadline: float, timeout: float) -> socket.socket:
    try:
        async with asyncio.timeout_at(deadline):
            return await _open_socket(target)
    except TimeoutError as error:
        raise unreachable(
            f"The server at {target.place} did not answer within {timeout:g} s: check that it runs and that"
            " no firewall drops connections to the port."
        ) from error
    except socket.gaierror as error:
        raise unreachable(
            f"The name {target.address} has no address: check the server's address and DNS.", error
        ) from error
    except ConnectionRefusedError as error:
        raise unreachable(
            f"The server at {target.place} refuses connections: check that sshd runs and listens on this"
            " port.",
            error,
        ) from error
    except OSError as error:
        if error.errno in _NO_ROUTE:
            raise unreachable(
                f"There is no route to the server at {target.place}: check its address and the network"
                " between it and the control plane.",
                error,
            ) from error
        raise unreachable(
            f"No connection to the server at {target.place} could be made: check its address and that it"
            " runs.",
            error,
        ) from error


async def _open_socket(target: HostTarget) -> socket.socket:
    """A TCP connection to the first address that takes it. Raises OSError."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        try:
            await loop.sock_connect(opened, address)
        except OSError as error:
            opened.close()
            failure = failure or error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure or OSError(errno.EADDRNOTAVAIL, "no address")


async def _await_version(
    target: HostTarget, connected: socket.socket, deadline: float, timeout: float
) -> None:
    """Waits until sshd says its version, which it does unasked, and leaves it to be read.

    Raises HostUnreachable where something else is said.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await _until_readable(connected)
        said = connected.recv(256, socket.MSG_PEEK)
    except TimeoutError as error:
        raise unreachable(
            f"The server at {target.place} takes connections and says nothing for {timeout:g} s: check that"
            " it is sshd that listens on this port, and that the server is not overloaded."
        ) from error
    except OSError as error:
        raise _closed_early(target) from error
    if not said:
        raise _closed_early(target)
    if said.startswith(_LIMITED):
        raise unreachable(
            f"The server at {target.place} lets us in no more for now: its sshd limits connections"
            " (MaxStartups) or bans our address for a while (PerSourcePenalties). Wait, or raise the limit."
        )
    if not said.startswith(_VERSION):
        raise unreachable(
            f"What listens at {target.place} does not speak SSH: check the server's address and SSH port."
        )


def _closed_early(target: HostTarget) -> HostUnreachable:
    return unreachable(
        f"The server at {target.place} closed the connection before it spoke SSH: its sshd is just starting,"
        " or it limits connections or bans our address for a while (MaxStartups, PerSourcePenalties)."
    )


async def _until_readable(connected: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connected, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connected)


async def _authenticate(
    target: HostTarget, connected: socket.socket, deadline: float, timeout: float
) -> asyncssh.SSHClientConnection:
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncssh.connect(
                target.address,
                target.port,
                sock=connected,
                username=target.user,
                client_keys=[asyncssh.import_private_key(target.private_key)],
                # Exactly this key is trusted: no authority, no file, no other kind of key.
                known_hosts=([asyncssh.import_public_key(target.host_key)], [], []),
                server_host_key_algs=["ssh-ed25519"],
                preferred_auth=["publickey"],
                agent_path=None,
                config=None,
                x509_trusted_certs=None,
                gss_host=None,
                encryption_algs=_CIPHERS,
                compression_algs=None,
                keepalive_interval=_KEEPALIVE_SECONDS,
                keepalive_count_max=_KEEPALIVES_MISSED,
            )
    except TimeoutError as error:
        raise unreachable(
            f"The login at {target.place} was not done within {timeout:g} s: check that the server is not"
            " overloaded."
        ) from error
    except (asyncssh.Error, OSError) as error:
        raise _login_error(target, error) from error


def _login_error(target: HostTarget, error: Exception) -> UpstreamError:
    # A machine without any key of the pinned kind cannot be ours either.
    wrong_kind = isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(error).lower()
    if wrong_kind or isinstance(error, asyncssh.HostKeyNotVerifiable):
        return HostKeyMismatch(
            f"The machine at {target.place} does not have the host key of this server, so nothing was sent to"
            " it: find out who answers there. If the server was installed anew, delete it and create it"
            " again.",
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return HostAuthenticationFailed(
            f"The server at {target.place} refused our SSH key for user {target.user}: "
            "check that its authorized keys still hold the one of this control plane.",
        )
    return connection_lost(target, "we logged in", error)
