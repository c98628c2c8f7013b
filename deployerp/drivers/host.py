"""SSH to a server whose host key is known beforehand, and its sockets brought here."""

import asyncio
import contextlib
import shlex
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from deployerp.domain.errors import (
    CommandFailed,
    HostAuthenticationFailed,
    HostKeyMismatch,
    HostUnreachable,
    WorldError,
)
from deployerp.drivers.engine import Engine

ENGINE_SOCKET = "/var/run/docker.sock"

_KEEPALIVE_SECONDS = 4
_KEEPALIVES_MISSED = 3
# AES in hardware moves images several times faster than the library's first choice.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
]


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key pair in OpenSSH's text formats; `public` is one line."""

    private: str = field(repr=False)
    public: str


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


@dataclass(frozen=True)
class Completed:
    """How a command on the server ended and what it wrote."""

    exit_status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()


def generate_key_pair(comment: str) -> KeyPair:
    """A new ed25519 key pair, for a server's identity or for ours."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return KeyPair(
        private=key.export_private_key("openssh").decode(),
        public=key.export_public_key("openssh").decode().strip(),
    )


def public_key_of(private_key: str) -> str:
    """The public line of a private key in OpenSSH's format."""
    return asyncssh.import_private_key(private_key).export_public_key("openssh").decode().strip()


@contextlib.asynccontextmanager
async def connect(target: HostTarget, *, timeout: float = 10) -> AsyncIterator["Host"]:
    """A connection to the server; everything opened through it is closed with it.

    Raises HostUnreachable, HostKeyMismatch (before anything but the key exchange was sent) and
    HostAuthenticationFailed. A server that dies meanwhile is noticed after 16 s.
    """
    connection = await _open(target, timeout)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(connection.wait_closed)
        stack.callback(connection.close)
        yield Host(target, connection, stack)


class Host:
    """One server, connected."""

    def __init__(
        self,
        target: HostTarget,
        connection: asyncssh.SSHClientConnection,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self._target = target
        self._connection = connection
        self._stack = stack
        self._engine: Engine | None = None

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float,
        check: bool = True,
    ) -> Completed:
        """Run one command to its end, `input` as its whole standard input, for at most `timeout` seconds.

        Raises CommandFailed for a non-zero exit unless `check` is off, with the end of its standard error
        in `details.stderr`, and when time is up (the command may then go on running); HostUnreachable when
        the connection is lost.
        """
        command = _command_line(argv)
        # The library takes an empty input for none at all, and leaves the command waiting for it.
        options: dict[str, Any] = {"input": input} if input else {"stdin": asyncssh.DEVNULL}
        try:
            ended = await self._connection.run(command, encoding=None, timeout=timeout, **options)
        except TimeoutError as error:
            raise CommandFailed(
                f"{argv[0]} on {self._target.address} was not done within {timeout:g} s.",
                details={"stderr": _tail(getattr(error, "stderr", None))},
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise _unreachable(self._target, error) from error
        if ended.exit_status is None and ended.exit_signal is None:
            raise _unreachable(self._target, "the connection was lost while a command ran")
        # As shells do: a signal is no exit status, and must not look like success.
        status = 128 if ended.exit_status is None else ended.exit_status
        completed = Completed(status, _bytes(ended.stdout), _bytes(ended.stderr))
        if check and status != 0:
            raise CommandFailed(
                f"{argv[0]} on {self._target.address} ended with exit status {status}. "
                "See the end of its output in the details.",
                details={"exit_status": status, "stderr": _tail(completed.stderr)},
            )
        return completed

    async def forward_socket(self, remote_path: str) -> str:
        """A Unix socket here that leads to one on the server, until the connection is closed; its path."""
        return await self._forward(lambda path: self._connection.forward_local_path(path, remote_path))

    async def forward_port(self, remote_address: str, remote_port: int) -> str:
        """A Unix socket here that leads to a TCP port as the server sees it; its path."""
        return await self._forward(
            lambda path: self._connection.forward_local_path_to_port(path, remote_address, remote_port)
        )

    @contextlib.asynccontextmanager
    async def lock(self, name: str, *, timeout: float = 1800) -> AsyncIterator[None]:
        """Hold a lock of the server's, which a client that dies lets go of with its connection.

        Raises CommandFailed when others hold it for `timeout` seconds.
        """
        # The lock lives as long as `cat`, and that as long as its input: this connection.
        command = ["flock", "--wait", f"{timeout:.0f}", f"/run/deployerp-{name}.lock"]
        holder = ["sh", "-c", "echo held && exec cat"]
        try:
            async with self._connection.create_process(_command_line(command + holder)) as process:
                if await process.stdout.readline() != "held\n":
                    raise CommandFailed(
                        f"Others have held the server's lock `{name}` for too long: try again."
                    )
                yield
                process.stdin.write_eof()
        except asyncssh.Error as error:
            raise _unreachable(self._target, error) from error

    async def engine(self) -> Engine:
        """The server's Docker Engine, one for the whole connection and closed with it."""
        if self._engine is None:
            path = await self.forward_socket(ENGINE_SOCKET)
            self._engine = await self._stack.enter_async_context(Engine(f"unix://{path}"))
        return self._engine

    async def _forward(self, listen: Callable[[str], Awaitable[asyncssh.SSHListener]]) -> str:
        # The directory is ours alone (0700): who reaches the engine's socket rules the server.
        directory = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="deployerp-", ignore_cleanup_errors=True)
        )
        path = str(Path(directory, "socket"))
        try:
            listener = await listen(path)
        except (asyncssh.Error, OSError) as error:
            raise _unreachable(self._target, error) from error
        self._stack.push_async_callback(listener.wait_closed)
        self._stack.callback(listener.close)
        return path


def _command_line(argv: Sequence[str]) -> str:
    # SSH knows only command lines. This is the one place where they are made.
    return shlex.join(argv)


async def _open(target: HostTarget, timeout: float) -> asyncssh.SSHClientConnection:
    try:
        async with asyncio.timeout(timeout):
            return await asyncssh.connect(
                target.address,
                target.port,
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
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise _connection_error(target, error) from error


def _connection_error(target: HostTarget, error: Exception) -> WorldError:
    where = f"{target.address}:{target.port}"
    # A machine without any key of the pinned kind cannot be ours either.
    wrong_kind = isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(error).lower()
    if wrong_kind or isinstance(error, asyncssh.HostKeyNotVerifiable):
        return HostKeyMismatch(
            f"The machine at {where} does not have the host key of this server, so nothing was sent to it: "
            "find out who answers there. If the server was installed anew, delete it and create it again.",
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return HostAuthenticationFailed(
            f"The server at {where} refused our SSH key for user {target.user}: "
            "check that its authorized keys still hold the one of this control plane.",
        )
    return _unreachable(target, error)


def _unreachable(target: HostTarget, reason: Exception | str) -> HostUnreachable:
    name = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
    return HostUnreachable(
        f"The server at {target.address}:{target.port} does not answer over SSH: "
        "check that it runs and that the port is open.",
        details={"reason": f"{name}{reason}"},
    )


def _bytes(output: Any) -> bytes:
    return bytes(output or b"")


def _tail(output: Any, limit: int = 4000) -> str:
    return _bytes(output).decode(errors="replace").strip()[-limit:]
